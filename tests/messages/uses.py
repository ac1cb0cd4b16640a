"""Wrong and unusual uses, and the line that each one gives.

A use is what a user types: a command line, or a few lines of Python. Each must end in one line that says what to do:
an :class:`~edp_fx.errors.EdpError` of the library, exit status 2 of the command, and no file left behind.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import edp_fx
from edp_fx.cli import main
from edp_fx.errors import EdpError
from edp_fx.models import load_model


@dataclass(frozen=True)
class Answer:
    """What a use gave: the line, or what was wrong with the answer."""

    line: str
    fault: str = ""


def prepare(root: Path) -> None:
    """The files that the uses speak of."""
    from PIL import Image

    rng = np.random.default_rng(0)

    def pictures(folder: str, classes: tuple[str, ...], count: int) -> None:
        for name in classes:
            (root / folder / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / folder / name / f"{number}.jpg")

    pictures("pets", ("cat", "dog"), 12)
    pictures("three", ("cat", "cow", "dog"), 12)
    pictures("single", ("cat", "dog"), 1)
    pictures("lonely", ("cat",), 4)
    pictures("uneven/train", ("cat", "dog"), 4)
    pictures("uneven/val", ("cat", "cow"), 4)
    pictures("twice/train", ("cat", "dog"), 4)
    pictures("twice/training", ("cat", "dog"), 4)
    pictures("damaged", ("cat", "dog"), 6)
    half = root / "damaged/dog/3.jpg"
    half.write_bytes(half.read_bytes()[:400])
    (root / "empty").mkdir()
    (root / "loose").mkdir()
    (root / "loose/photo.jpg").write_bytes((root / "pets/cat/0.jpg").read_bytes())
    (root / "occupied").mkdir()
    (root / "occupied/notes.txt").write_text("mine")
    (root / "mine.py").write_text(MINE)
    (root / "broken.py").write_text("import nothing_of_that_name\n")
    (root / "bad.yaml").write_text("method: {kinds: [channel\n")
    (root / "typo.yaml").write_text("method: {kindz: [channel]}\n")
    loaded = load_model("test_resnet", num_classes=2, img_size=32)
    gm = edp_fx.trace(loaded.model, loaded.example_inputs)
    edp_fx.save(gm, root / "saved", loaded.example_inputs)
    for name in ("cut", "edited", "bare"):
        edp_fx.save(gm, root / name, loaded.example_inputs if name != "bare" else None)
    blob = root / "cut/weights.safetensors"
    blob.write_bytes(blob.read_bytes()[:1000])
    (root / "edited/recipe.json").write_text("{")
    torch.save(loaded.model.state_dict(), root / "weights.pt")
    torch.save(loaded.model, root / "whole.pt")
    torch.save({"epoch": 3}, root / "counter.pt")
    (root / "plan.onnx").write_bytes(b"no network")


MINE = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Linear(5, 4)
    def forward(self, x, y):
        return self.a(x).mean((2, 3)) + self.b(y)

class Jump(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(12, 2)
    def forward(self, x):
        x = x.flatten(1)
        return self.a(x) if x.sum() > 0 else self.a(-x)

def two():
    return Two(), (torch.randn(2, 3, 8, 8), torch.randn(2, 5))
def jump():
    return Jump(), torch.randn(2, 3, 2, 2)
def pair():
    net = Two()
    net.b = nn.Linear(5, 2)
    net.a = nn.Conv2d(3, 2, 3)
    return net, (torch.randn(2, 3, 8, 8), torch.randn(2, 5))
def detector():
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large
    return ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2)
nothing = {}
metrics = {"metric": len}
typo = {"lose": len}
def unread():
    def data():
        return open("masks/none.png")
    return {"data": data}
def whole():
    batches = [(torch.randn(2, 3, 32, 32), torch.zeros(2, 30, 30))]
    return {"loss": lambda outputs, targets: outputs.out, "data": {"train": batches, "val": batches}}
def number():
    return 3
def misspelt():
    return {"model": nn.Linear(3, 2), "means": 1}
def needs(width):
    return nn.Linear(width, 2)
def failing():
    raise RuntimeError("no such width")
def words():
    return nn.Linear(3, 2), "images"
def flat():
    return {"model": Jump(), "example_inputs": torch.randn(2, 3, 2, 2), "std": 0}
def cubic():
    return {"model": Jump(), "interpolation": "cubic"}
def maps():
    return nn.Conv2d(3, 2, 3), torch.randn(2, 3, 32, 32)
net = nn.Linear(3, 2)
SIZE = 5
"""


def fresh_names() -> dict[str, Any]:
    """What the Python of a use may name."""
    torch.manual_seed(0)
    model = load_model("test_resnet", num_classes=4, img_size=32).model
    x = torch.randn(2, 3, 32, 32)
    batches = [(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])) for _ in range(3)]
    return {"edp_fx": edp_fx, "torch": torch, "nn": nn, "model": model, "x": x, "batches": batches}


def ask_command(line: str) -> Answer:
    """Run a command line in this process and directory."""
    before = _files()
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(shlex.split(line))
    except SystemExit as stop:
        code = stop.code
    except Exception as error:
        return Answer(f"{type(error).__name__}: {error}", "a traceback")
    said = [one for one in err.getvalue().splitlines() if one.strip()]
    answer = _plain(said[-1] if said else "")
    if code != 2:
        return Answer(answer, f"exit status {code}")
    if len(said) != 1:
        return Answer(answer, f"{len(said)} lines")
    left = sorted(_files() - before)
    return Answer(answer, f"left {left[0]} behind" if left else "")


def ask_python(source: str) -> Answer:
    """Run a few lines of Python."""
    before = _files()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            exec(compile(textwrap.dedent(source), "use", "exec"), fresh_names())
    except EdpError as error:
        answer = f"{type(error).__name__}: {_plain(str(error))}"
        left = sorted(_files() - before)
        if left:
            return Answer(answer, f"left {left[0]} behind")
        return Answer(answer, "several lines" if "\n" in str(error) else "")
    except Exception as error:
        return Answer(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", "no EdpError")
    return Answer("", "silent")


@contextlib.contextmanager
def inside(root: Path) -> Iterator[None]:
    """Work in ``root``, as a user would in his own directory."""
    home = Path.cwd()
    os.chdir(root)
    try:
        yield
    finally:
        os.chdir(home)


def _files() -> set[str]:
    return {str(path) for path in Path(".").rglob("*") if "__pycache__" not in path.parts}


def _plain(text: str) -> str:
    """Without what differs from machine to machine: directories, sizes in memory."""
    text = text.replace(str(Path.cwd()) + os.sep, "").replace(str(Path.cwd()), ".")
    return re.sub(r"0x[0-9a-f]+", "0x…", text)
