"""Every block of code of every page runs, in small: what a reader types works."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn import datasets

from edp_fx.cli import main
from edp_fx.job import Runner

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>.+?) -->\n)?^```(?P<kind>python|console)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
# what is typed in a page, and what is run for it here: small networks, one epoch, no engine where none is named
SMALLER = {
    r"compress (?!-|test_vit)\S+": "compress tinynet:net",
    r"--recipe quick-start": "tinynet:net --recipe quick-start",
    r"--epochs [1-9]\d*": "--epochs 1 --no-baseline",
    r"--no-baseline(.*) --no-baseline": r"--no-baseline\1",
    r"--img-size 160": "--img-size 32",
    r"(compress (?!.*--help)(?!.*--resume).*)": r"\1 --target onnx",
    r"--data folder:photos": "--data folder:photos --img-size 32",
    r"\bvit_tiny_patch16_224\b": "test_vit",
}
LOWERS = "quick-start"  # the page whose run makes its ONNX files
NETWORK = """
from torch import nn
def net(num_classes=10, in_chans=3):
    widths, layers = (in_chans, 16, 32, 32), []
    for one, other in zip(widths, widths[1:]):
        layers += [nn.Conv2d(one, other, 3, 2, 1, bias=False), nn.BatchNorm2d(other), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], num_classes))
"""


@dataclass(frozen=True)
class Block:
    """A block of code: where it begins, what it is, and why it is not run, if it is not."""

    page: Path
    line: int
    kind: str
    code: str
    why: str | None

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(page, text.count("\n", 0, found.start("code")), found["kind"], found["code"], found["why"])
        for found in BLOCK.finditer(text)
    ]


BLOCKS = {page: blocks(page) for page in PAGES}
WITH_CODE = [page for page, found in BLOCKS.items() if any(block.why is None for block in found)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what pages take for granted: a few photos, and weights of a network for them. Digits are fewer."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "tinynet.py").write_text(NETWORK)
    bunch = datasets.load_digits()
    bunch.images, bunch.target = bunch.images[:300], bunch.target[:300]
    monkeypatch.setattr(datasets, "load_digits", lambda: bunch)
    generator = torch.Generator().manual_seed(0)
    for part, name, count in (("train", "cat", 16), ("train", "dog", 16), ("val", "cat", 4), ("val", "dog", 4)):
        place = tmp_path / "photos" / part / name
        place.mkdir(parents=True)
        for number in range(count):
            pixels = torch.randint(0, 255, (40, 40, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(pixels.numpy()).save(place / f"{number}.png")
    model = importlib.import_module("tinynet").net(num_classes=2)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, "mine.safetensors")
    return tmp_path


def smaller(command: str) -> str:
    for pattern, replacement in SMALLER.items():
        command = re.sub(pattern, replacement, command)
    return command


def lowered_in_name(runner: Runner, network: Any, inputs: Any, directory: Path, extra: Any) -> Any:
    """What ``edp-fx compress`` does at its end, on all pages but one: each takes seconds and is the same."""
    return SimpleNamespace(bytes=0, max_abs_diff=0.0, path=directory / "model.onnx", builder=None)


def type_in(code: str, name: str) -> None:
    """Run the lines of a console that begin with ``$``."""
    lines = [line[2:] for line in code.splitlines() if line.startswith("$ ")]
    assert lines, f"{name}: nothing to type"
    for line in lines:
        program, *arguments = shlex.split(smaller(line))
        assert program == "edp-fx", f"{name}: {program} is not run here; say why above the block"
        said = io.StringIO()
        with pytest.raises(SystemExit) as ended, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main(arguments)
        assert not ended.value.code, f"{name}: {line}\n{said.getvalue()}"


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT / "docs")))
@pytest.mark.usefixtures("folder")
def test_the_code_of_a_page_runs_from_top_to_bottom(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.stem != LOWERS:
        monkeypatch.setattr(Runner, "_lower", lowered_in_name)
    monkeypatch.setattr("edp_fx.lowering.latency.onnx_latency", lambda networks, inputs: {})
    names: dict[str, Any] = {"__name__": "page"}
    for block in BLOCKS[page]:
        if block.why is not None:
            continue
        if block.kind == "console":
            type_in(block.code, block.name)
        else:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile("\n" * block.line + block.code, str(page), "exec"), names)


REASONS = (
    "an engine runs on an NVIDIA GPU",
    "installs",
    "measures networks for minutes",
    "a task of the reader's",
    "needs a data set, and minutes; the same is run in small above",
    "needs a network to download the weights",
    "needs several GPUs",
    "needs two machines",
    "starts two processes for minutes",
    "the run of the quick start once more",
    "trains a detector for minutes; the same is run in small above",
)


def test_what_is_not_run_says_one_of_few_reasons() -> None:
    said = {block.why for found in BLOCKS.values() for block in found if block.why is not None}
    assert said == set(REASONS)


def test_every_fence_is_of_a_known_kind() -> None:
    kinds = {kind for page in PAGES for kind in re.findall(r"^```(\w*)\n", page.read_text(), re.MULTILINE)} - {""}
    assert kinds <= {"python", "console", "text", "yaml", "mermaid"}
    plain = sum(len(re.findall(r"^```(?:python|console)$", page.read_text(), re.MULTILINE)) for page in PAGES)
    assert plain == sum(map(len, BLOCKS.values()))  # none escapes by its form
