"""What works without the extras, and that a missing one is named in one line with the command that installs it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edp_fx.errors import MissingExtraError
from edp_fx.extras import EXTRAS, need

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).parents[2]
ABSENT = sorted({module for modules in EXTRAS.values() for module in modules})

# a process in which the extras' packages cannot be imported: what `pip install edp_fx` alone gives
LEAN = f"import sys\nsys.modules.update(dict.fromkeys({ABSENT!r}))\n"
NETWORK = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)
    def forward(self, x):
        x = torch.relu(self.a(x))
        return self.head((x + torch.relu(self.b(x))).mean((2, 3)))
def net():
    return Net(), torch.randn(2, 3, 8, 8)
"""
LIBRARY = """
import edp_fx, mine, torch
torch.manual_seed(0)
model, x = mine.net()
graph = edp_fx.analyze(model, x)
gm = edp_fx.insert(edp_fx.trace(model.eval(), x))
want = gm(x)
gm.a.coefficient.weight.data[2:] = 0
gm.a.coefficient.bias.data[2:] = 0
small = edp_fx.prune_and_merge(gm, x)
small = edp_fx.compress(model, None, macs=0.6, epochs=0, example_inputs=x)
edp_fx.save(small, "small", x)
torch.testing.assert_close(edp_fx.load("small")(x), small(x))
print([group.size for group in graph.prunable], edp_fx.measure(small, x).macs < edp_fx.measure(model, x).macs)
"""


def lean(tmp_path: Path, code: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "mine.py").write_text(NETWORK)
    command = [sys.executable, "-c", LEAN + f"sys.path[:0] = [{str(ROOT)!r}, '.']\n" + code]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)


def test_the_library_works_without_the_extras(tmp_path: Path) -> None:
    done = lean(tmp_path, LIBRARY)
    assert done.stderr == ""
    assert done.stdout == "[8] True\n"


COMMANDS = {
    "inspect mine:net --html page.html --json graph.json": None,
    "inspect resnet18": "the timm model resnet18 needs timm: pip install 'edp_fx[models]'",
    "inspect torchvision:resnet18": "torchvision:resnet18 needs torchvision: pip install 'edp_fx[models]'",
    "evaluate mine:net --data digits": "--data digits needs scikit-learn: pip install 'edp_fx[data]'",
    "evaluate mine:net --data folder:pets": "reading image files needs Pillow: pip install 'edp_fx[data]'",
    "compress mine:net --data digits --macs 0.5 --epochs 1 --out o": "training needs accelerate: "
    "pip install 'edp_fx[train]'",
    "compress mine:net --data digits --macs 0.5 --epochs 0 --out o": "lowering the result needs onnx: "
    "pip install 'edp_fx[lower]'",
    "lower mine:net --target onnx --out net.onnx": "lowering needs onnx: pip install 'edp_fx[lower]'",
}


def test_a_command_that_misses_one_names_it_in_one_line(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        (tmp_path / "pets" / name / "1.jpg").write_bytes(b"x")
    code = f"""
import contextlib, io, json
from edp_fx.cli import main
said = {{}}
for command in {list(COMMANDS)!r}:
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        try:
            main(command.split())
        except SystemExit as ended:
            said[command] = [ended.code, err.getvalue()]
print(json.dumps(said))
"""
    done = lean(tmp_path, code)
    assert done.returncode == 0, done.stderr
    expected = {command: [0, ""] if line is None else [2, f"edp-fx: {line}\n"] for command, line in COMMANDS.items()}
    assert json.loads(done.stdout) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph.json", "mine.py", "page.html", "pets"]


def test_a_package_that_is_there_and_fails_says_why_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_package.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        need("lower", "this", "broken_package")
    with pytest.raises(MissingExtraError, match=r"^this needs absent_package: pip install 'edp_fx\[lower\]'$"):
        need("lower", "this", "absent_package")


def test_the_extras_are_those_of_the_package() -> None:
    projects = {"sklearn": "scikit-learn", "PIL": "pillow"}
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {
        extra: {re.split(r"[<>=]", one)[0].lower() for one in told["optional-dependencies"][extra]} for extra in EXTRAS
    }
    assert declared == {extra: {projects.get(one, one) for one in modules} for extra, modules in EXTRAS.items()}
    (whole,) = told["optional-dependencies"]["all"]
    assert sorted(whole.removeprefix("edp_fx[").removesuffix("]").split(",")) == sorted(EXTRAS)
    assert not {one for modules in declared.values() for one in modules} & {
        re.split(r"[<>=]", one)[0].lower() for one in told["dependencies"]
    }
