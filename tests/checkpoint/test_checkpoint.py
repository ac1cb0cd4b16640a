"""Saving and loading: nothing lost, and a hostile or damaged file executes nothing."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import edp_fx
from edp_fx.checkpoint import RECIPE, WEIGHTS
from edp_fx.errors import CheckpointError, EdpError
from edp_fx.inputs import randomize_


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.fx.GraphModule, torch.Tensor]:
    model = timm.create_model("resnet10t").eval()
    randomize_(model)
    x = torch.randn(2, 3, 64, 64)
    gm = edp_fx.insert(edp_fx.trace(model, x), rank=0.25).eval()
    small = edp_fx.prune_and_merge(gm, x).eval()
    path = tmp_path_factory.mktemp("saved")
    edp_fx.save(small, path, x, extra={"source": "resnet10t"})
    return path, small, x


def test_the_same_function_and_names_come_back(saved: Any) -> None:
    path, small, x = saved
    back = edp_fx.load(path)
    with torch.no_grad():
        assert torch.equal(small(x), back(x))
        assert torch.equal(small(x[:1]), back(x[:1]))
    assert list(small.state_dict()) == list(back.state_dict())
    assert back.meta["edp_fx.recipe"]["extra"] == {"source": "resnet10t"}
    assert all(type(m).__module__.startswith(("torch.", "timm.", "edp_fx.pairs")) for m in list(back.modules())[1:])


def test_what_was_loaded_trains_and_prunes_again(saved: Any) -> None:
    path, _, x = saved
    back = edp_fx.load(path).train()
    back(x).square().mean().backward()
    assert all(p.grad is not None for p in back.parameters() if p.requires_grad)
    again = edp_fx.prune_and_merge(back.eval(), x)
    with torch.no_grad():
        torch.testing.assert_close(back(x), again.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["test_vit", "swin_s3_tiny_224", "test_efficientnet", "nf_regnet_b0"])
def test_other_kinds_of_networks(name: str, tmp_path: Path) -> None:
    model = timm.create_model(name).eval()
    randomize_(model)
    x = torch.randn(1, *model.pretrained_cfg["input_size"])
    gm = edp_fx.trace(model, x).eval()
    edp_fx.save(gm, tmp_path, x)
    with torch.no_grad():
        assert torch.equal(gm(x), edp_fx.load(tmp_path)(x))


def change(path: Path, tmp_path: Path, edit: Any) -> Path:
    """A copy of a saved directory whose recipe was edited."""
    recipe = json.loads((path / RECIPE).read_text())
    edit(recipe)
    (tmp_path / RECIPE).write_text(json.dumps(recipe))
    (tmp_path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes())
    return tmp_path


def node(recipe: dict[str, Any], op: str) -> dict[str, Any]:
    """The first node of a kind; a method call becomes a function call where one is wanted."""
    wanted = ("call_function", "call_method") if op == "call_function" else (op,)
    found = next(one for one in recipe["structure"]["nodes"] if one["op"] in wanted)
    found["op"] = op
    return found


def layer(recipe: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(one for one in recipe["structure"]["layers"].values() if one["class"].endswith(kind))


HOSTILE: dict[str, Any] = {
    "a system call": lambda r: node(r, "call_function").update(target="os:system"),
    "torch.load": lambda r: node(r, "call_function").update(target="torch:load"),
    "a file mapped": lambda r: node(r, "call_function").update(target="torch:from_file"),
    "eval": lambda r: node(r, "call_function").update(target="builtins:eval"),
    "a dunder": lambda r: node(r, "call_module").update(op="call_method", target="__reduce__"),
    "an attribute of attributes": lambda r: node(r, "call_function").update(
        target="builtins:getattr", args={"tuple": [{"node": r["structure"]["nodes"][0]["name"]}, "__class__"]}
    ),
    "a class of another package": lambda r: layer(r, "Conv2d").update({"class": "subprocess.Popen"}),
    "a function for a class": lambda r: layer(r, "Conv2d").update({"class": "torch.nn.modules.conv.F"}),
    "a forward of its own": lambda r: layer(r, "Conv2d")["attributes"].update(forward="x"),
    "code in a node's name": lambda r: node(r, "call_module").update(name="x; import os"),
    "a path for a layer": lambda r: r["structure"]["layers"].update({"../../etc": {"class": "torch.nn.Module"}}),
    "a wrong shape": lambda r: (
        r["structure"]["tensors"]["fc.weight"].__setitem__(0, [1 << 40, 1 << 20])
        if "fc.weight" in r["structure"]["tensors"]
        else next(iter(r["structure"]["tensors"].values())).__setitem__(0, [1 << 40])
    ),
    "a tensor too many": lambda r: r["structure"]["tensors"].update(ghost=[[1], "float32"]),
    "a node before it is made": lambda r: r["structure"]["nodes"].reverse(),
    "no end": lambda r: r["structure"]["nodes"].pop(),
    "another format": lambda r: r.update(format=99),
    "no structure": lambda r: r.pop("structure"),
    "a wrong checksum": lambda r: r.update(weights_sha256="0" * 64),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_recipes_are_one_clear_error(name: str, saved: Any, tmp_path: Path, monkeypatch: Any) -> None:
    called: list[str] = []
    monkeypatch.setattr(os, "system", called.append)
    with pytest.raises(CheckpointError) as error:
        edp_fx.load(change(saved[0], tmp_path, HOSTILE[name]))
    assert "\n" not in str(error.value)
    assert not called


@pytest.mark.parametrize("file", [RECIPE, WEIGHTS])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "empty"])
def test_damaged_files_are_one_clear_error(file: str, damage: str, saved: Any, tmp_path: Path) -> None:
    path = change(saved[0], tmp_path, lambda recipe: None)
    content = (path / file).read_bytes()
    if damage == "missing":
        (path / file).unlink()
    else:
        middle = len(content) // 2
        made = {
            "truncated": content[:middle],
            "empty": b"",
            "flipped": content[:middle] + b"\xff" + content[middle + 1 :],
        }
        (path / file).write_bytes(made[damage])
    with pytest.raises(CheckpointError):
        edp_fx.load(path)


def test_a_layer_of_ones_own_is_refused_when_saving(tmp_path: Path) -> None:
    class Mine(torch.nn.ReLU):
        pass

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Conv2d(3, 4, 1), Mine()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x))

    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_module("b", (graph.call_module("a", (x,)),)))
    with pytest.raises(CheckpointError, match="your own class"):
        edp_fx.save(torch.fx.GraphModule(Net(), graph), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_ordered_dict_of_outputs_comes_back(tmp_path: Path) -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> Any:
            y = self.a(x)
            return OrderedDict(out=y, aux=[y.relu()])

    x = torch.randn(2, 3, 4, 4)
    back = edp_fx.load(edp_fx.save(edp_fx.trace(Two(), x), tmp_path / "out", x))
    assert list(back(x)) == ["out", "aux"]
    assert type(back(x)) is OrderedDict


@dataclass
class Found:
    scores: torch.Tensor
    boxes: list[torch.Tensor] | None = None
    note: str | None = None


def test_a_dataclass_of_outputs_comes_back_as_a_dictionary(tmp_path: Path) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Linear(3, 4)

        def forward(self, x: torch.Tensor) -> Found:
            y = self.a(x)
            return Found(y, boxes=[y.relu(), y.tanh()])

    net, x = Net(), torch.randn(2, 3)
    back = edp_fx.load(edp_fx.save(edp_fx.trace(net, x), tmp_path / "out", x))
    want, got = net(x), back(x)
    assert list(got) == ["scores", "boxes", "note"]
    assert got["note"] is None
    assert torch.equal(got["scores"], want.scores)
    assert want.boxes is not None
    assert all(map(torch.equal, got["boxes"], want.boxes))


def test_a_pt2_file_computes_the_same_at_any_batch_size(saved: Any, tmp_path: Path) -> None:
    _, small, x = saved
    file = edp_fx.save(small.train(), tmp_path / "deep" / "small.pt2", x)
    small.eval()
    assert [path.name for path in file.parent.iterdir()] == ["small.pt2"]
    back = torch.export.load(file).module()
    for batch in (1, 2, 5):
        images = torch.randn(batch, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(back(images), small(images), rtol=1e-5, atol=1e-5)


def test_a_pt2_file_that_would_be_wrong_is_not_written(tmp_path: Path) -> None:
    class Fixed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, -1)

    gm = torch.fx.symbolic_trace(Fixed())
    file = tmp_path / "net.pt2"
    with pytest.raises(EdpError) as said:
        edp_fx.save(gm, file, torch.randn(2, 3, 4))
    assert "\n" not in str(said.value)
    with pytest.raises(CheckpointError, match="example inputs"):
        edp_fx.save(gm, file)
    assert not any(tmp_path.iterdir())


def test_a_hostile_pt2_file_is_refused_unread(saved: Any, tmp_path: Path) -> None:
    """torch.export.load would unpickle it, so it is not called."""
    import pickle
    import zipfile

    file, proof = tmp_path / "evil.pt2", tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(proof),))

    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("evil/data/constants/opaque_obj_0", pickle.dumps(Evil()))
    for content in (None, b"", b"no zip"):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(CheckpointError, match="can execute code"):
            edp_fx.load(file)
    assert not proof.exists()
