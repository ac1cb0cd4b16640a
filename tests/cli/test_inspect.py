"""``edp-fx inspect``: its words, its files and its page, in a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import networkx as nx
import pytest
import torch
from selenium.webdriver.support.ui import WebDriverWait
from torch import nn
from torch.nn import functional as F

import edp_fx
from edp_fx.cli import main
from edp_fx.errors import EdpError
from edp_fx.files import whole
from edp_fx.frontend import trace
from edp_fx.models import load_model
from edp_fx.report.drawing import drawing
from edp_fx.report.inspect_page import inspect_page
from tests.helpers.chromium import chromium


class Dense(nn.Module):
    """Two joins, one extending the other, a residual sum, size arithmetic, and channels that nothing may remove."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.one = nn.Conv2d(8, 4, 3, padding=1)
        self.two = nn.Conv2d(12, 4, 3, padding=1)
        self.mix = nn.Conv2d(16, 16, 1)
        self.sorted = nn.Linear(16, 6)
        self.head = nn.Linear(6, 5)
        self.gamma = nn.Parameter(torch.ones(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.stem(x)))
        one = self.one(x)
        two = self.two(torch.cat([x, one], 1))
        both = torch.cat([x, one, two], 1)
        both = both + self.mix(both) * self.gamma.view(1, -1, 1, 1)
        batch, channels = both.shape[0], both.shape[1]
        flat = both.reshape(batch, channels, -1).mean(-1)
        return self.head(torch.cumsum(self.sorted(flat), 1))


INPUTS = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)


@pytest.fixture(scope="module")
def dense() -> edp_fx.ChannelGraph:
    return edp_fx.analyze(trace(Dense(), INPUTS), INPUTS)


def run(*argv: object) -> int | str:
    """Exit status of ``edp-fx inspect ARGV``."""
    with pytest.raises(SystemExit) as ended:
        main(["inspect", *map(str, argv)])
    return ended.value.code or 0


def test_the_picture_is_about_layers(dense: edp_fx.ChannelGraph) -> None:
    nodes = drawing(dense)["nodes"]
    drawn = [node for k, node in enumerate(nodes) if node["into"] == k]
    layers = {node["layer"] for node in drawn if node["kind"] == "call_module"}
    assert layers == {"stem", "one", "two", "mix", "sorted", "head"}
    joins = [node["op"] for node in drawn if node["kind"] == "call_function"]
    assert joins == ["cat", "cat", "add"]
    home = {node["layer"]: nodes[node["into"]] for node in nodes if node["layer"]}
    assert home["norm"]["layer"] == "stem"  # a norm goes with what it normalises
    assert home["gamma"]["layer"] == "mix"  # a bare parameter with the layer whose output it scales
    for k, node in enumerate(nodes):
        assert (node["into"] >= 0) == (bool(node["shapes"]) or node["kind"] == "output"), node["name"]
        assert all(source < k for source in node["in"])


def test_a_join_that_extends_another_is_drawn_on_top_of_it(dense: edp_fx.ChannelGraph) -> None:
    nodes = drawing(dense)["nodes"]
    first, second = [k for k, node in enumerate(nodes) if node["op"] == "cat"]
    assert second > first
    assert first in nodes[second]["in"]
    assert [nodes[k]["layer"] for k in nodes[second]["in"] if k != first] == ["two"]


def test_nodes_carry_the_groups_on_their_channels(dense: edp_fx.ChannelGraph) -> None:
    data = drawing(dense)
    nodes = {node["name"]: node for node in data["nodes"]}
    cat = next(node for node in data["nodes"] if node["op"] == "cat")
    produced = {layer: group["id"] for group in data["groups"] for layer in group["producers"]}
    assert [group for group, _ in cat["carries"]] == [produced["stem"], produced["one"]]
    assert [count for _, count in cat["carries"]] == [8, 4]
    assert nodes["stem"]["roles"][str(produced["stem"])] == ["affine", "producer"]
    assert sum(node["macs_share"] for node in data["nodes"]) == pytest.approx(1)


def test_files_are_written_and_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = {kind: tmp_path / f"graph.{kind}" for kind in ("json", "dot", "graphml", "svg", "html")}
    spec = f"{__name__}:Dense"
    assert run(spec, "--img-size", 8, *(word for kind, path in paths.items() for word in (f"--{kind}", path))) == 0
    said = capsys.readouterr().out
    data = json.loads(paths["json"].read_text())
    facts = data["summary"]
    assert f"{facts['groups']} prunable groups; {facts['prunable']} of {facts['channels']} output channels" in said
    assert "frozen: an axis of fixed size, at cumsum (6 channels)" in said
    graph = nx.read_graphml(paths["graphml"])
    assert {"stem", "two", "group 0"} <= set(graph.nodes)
    assert paths["dot"].read_text().startswith("graph channels {")
    picture = ElementTree.parse(paths["svg"])
    layers = {node.get("data-layer") for node in picture.iter() if node.get("class", "").startswith("node layer")}
    assert layers == {"stem", "one", "two", "mix", "sorted", "head"}
    assert "stem" in paths["html"].read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths.values())


def test_explain_says_with_whom_a_layer_is_tied(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"{__name__}:Dense", "--img-size", 8, "--explain", "mix") == 0
    assert "mix: 8 prunable channels" in capsys.readouterr().out
    assert run(f"{__name__}:Dense", "--img-size", 8, "--explain", "mixx") == 2
    assert "did you mean mix" in capsys.readouterr().err


def test_pairs_show_their_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"{__name__}:Dense", "--img-size", 8, "--pairs") == 0
    assert " rank " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["resnet_fifty"], "no timm model is named 'resnet_fifty'"),
        ([f"{__name__}:Dense", "--html", "/nowhere/at/all.html"], "the directory /nowhere/at does not exist"),
        ([f"{__name__}:Dense", "--json", "/"], "is a directory"),
        ([f"{__name__}:Dense", "--heads", "some"], "heads='some' is unknown"),
    ],
)
def test_bad_input_is_one_line(argv: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("before")

    def fail() -> Any:
        with whole(path) as part:
            part.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(EdpError, match="No space left"):
        fail()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


# -- the page, in Chromium -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium(1400, 900) as driver:
        yield driver


def settle(browser: Any) -> None:
    WebDriverWait(browser, 60).until(lambda one: one.execute_script("return document.body.dataset.ready") == "1")


def find(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


@pytest.fixture(scope="module")
def resnet50(tmp_path_factory: pytest.TempPathFactory) -> tuple[edp_fx.ChannelGraph, Path]:
    loaded = load_model("resnet50", img_size=64)
    graph = edp_fx.analyze(loaded.model, loaded.example_inputs)
    path = tmp_path_factory.mktemp("page") / "resnet50.html"
    path.write_text(inspect_page(graph, loaded.name))
    return graph, path


@pytest.mark.browser
def test_search_and_click_show_the_group_of_a_layer(browser: Any, resnet50: tuple[edp_fx.ChannelGraph, Path]) -> None:
    graph, path = resnet50
    browser.get(path.as_uri())
    assert browser.execute_script("return document.body.dataset.ready") == "1"  # at once: it was laid out before
    assert len(browser.find_elements("css selector", ".node.layer")) == 54
    assert all(node.is_displayed() for node in browser.find_elements("css selector", ".node"))
    find(browser, "#search").send_keys("layer3.0.conv2")
    assert [hit.text.split()[0] for hit in browser.find_elements("css selector", "#found button")] == ["layer3.0.conv2"]
    find(browser, "#search").send_keys("\n")
    (group,) = graph.output_groups["layer3.0.conv2"]
    opened = find(browser, "#detail details[open]")
    assert opened.get_attribute("data-group") == str(group.id)
    assert f"makes group {group.id}: 256 channels" in opened.text
    find(browser, "#zoom-fit").click()
    (wide,) = graph.output_groups["layer3.1.conv3"]
    find(browser, '.node[data-layer="layer3.1.conv3"]').click()
    card = find(browser, f'#detail details[data-group="{wide.id}"]')
    for name in (*wide.producers, *wide.consumers):
        assert name in card.text
    assert "add_ at" in card.text
    lit = {node.get_attribute("data-layer") for node in browser.find_elements("css selector", ".node.layer.on")}
    assert lit == {*wide.producers, *wide.consumers}
    find(browser, f'#detail details[data-group="{wide.id}"] .members summary').click()
    selector = f'#detail details[data-group="{wide.id}"] tbody tr'
    # the page is told of the opening after the click has returned
    rows = WebDriverWait(browser, 60).until(lambda one: one.find_elements("css selector", selector))
    assert len(rows) == len(wide.members)
    assert browser.get_log("browser") == []
    assert (
        browser.execute_script("return performance.getEntriesByType('resource').filter(e => /^http/.test(e.name))")
        == []
    )


@pytest.mark.browser
def test_frozen_layers_are_grey_and_say_why(browser: Any, dense: edp_fx.ChannelGraph, tmp_path: Path) -> None:
    hostile = 'net</script><img src=x onerror="document.title=1">'
    path = tmp_path / "page.html"
    path.write_text(inspect_page(dense, hostile))
    browser.get(path.as_uri())
    settle(browser)
    assert browser.title == f"{hostile}: channel groups"
    assert find(browser, "h1").text == hostile
    node = find(browser, '.node[data-layer="sorted"]')
    assert "grey" in node.get_attribute("class").split()
    node.click()
    (group,) = dense.output_groups["sorted"]
    assert group.frozen in find(browser, f'#detail details[data-group="{group.id}"]').text
    assert browser.get_log("browser") == []


class Long(nn.Module):
    """A residual chain of a thousand operations."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 3, 1) for _ in range(334)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv in self.convs:
            x = x + F.relu(conv(x))
        return x


@pytest.mark.browser
def test_a_thousand_nodes(browser: Any, tmp_path: Path) -> None:
    inputs = (torch.randn(1, 3, 2, 2),)
    path = tmp_path / "page.html"
    path.write_text(inspect_page(edp_fx.analyze(Long(), inputs), "long"))
    browser.get(path.as_uri())
    settle(browser)
    assert len(browser.find_elements("css selector", ".node.layer")) == 334
    find(browser, "#show-all").click()
    settle(browser)
    assert len(browser.find_elements("css selector", ".node")) == 3 * 334 + 2
    find(browser, "#wrap-none").click()
    find(browser, "#show-layers").click()
    settle(browser)
    assert len(browser.find_elements("css selector", ".node.layer")) == 334
    assert browser.get_log("browser") == []
