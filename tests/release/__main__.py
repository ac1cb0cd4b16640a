"""``python -m tests.release``: build a wheel and an sdist, and use the wheel where there is nothing else of edp_fx.

The environment made for it has its own edp_fx and sees this one's packages, torch above all, by a ``.pth`` file, which
does not lead to a checkout installed here in editable form. Ends with status 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONSUMER = Path(__file__).with_name("consumer.py")
COMMANDS = (
    "recipes",
    "inspect test_resnet --html page.html --svg picture.svg",
    "compress test_resnet --data digits --macs 0.7 --epochs 0 --target onnx --out small",
    "evaluate small --data digits",
    "lower small --target onnx --out net.onnx",
)
CACHE = ("--cache-dir", ROOT / ".mypy_cache" / "consumer")
MADE = ("page.html", "picture.svg", "small/weights.safetensors", "small/report.json", "net.onnx", "net.onnx.json")


def run(command: list[str | Path], cwd: Path, expected: int = 0) -> str:
    """Output of a command; the whole ends where its exit status is another."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    print("$", *(str(part) if part != sys.executable else "python" for part in command), flush=True)
    done = subprocess.run(command, cwd=cwd, env=env, text=True, capture_output=True, check=False)
    said = done.stdout + done.stderr
    if done.returncode != expected:
        sys.exit(f"{said}\nexit status {done.returncode}, not {expected}")
    return said


def build(out: Path) -> Path:
    """Wheel and sdist in ``out``, checked; the wheel's path."""
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT], out)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    print(run([sys.executable, "-m", "twine", "check", "--strict", wheel, sdist], out))
    ours = {
        f"edp_fx/{path.relative_to(ROOT / 'edp_fx')}"
        for path in (ROOT / "edp_fx").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and "passes" not in path.parts
    }
    ours |= {f"edp_fx/passes/{path.name}" for path in (ROOT / "passes").glob("*.py")}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    with tarfile.open(sdist) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    if names != ours or ours - sources:
        sys.exit(f"the wheel has {sorted(names ^ ours)} more or less, the sdist lacks {sorted(ours - sources)}")
    return wheel


def environment(wheel: Path, folder: Path) -> Path:
    """A virtual environment with the wheel and, by a path, this one's packages; its directory of programs."""
    run([sys.executable, "-m", "venv", "--without-pip", folder], folder.parent)
    python = folder / "bin" / "python"
    purelib = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip()
    Path(purelib, "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    run([*pip, "--no-deps", "--no-index", wheel], folder)
    where = run([python, "-c", "import edp_fx.passes.merge as m, edp_fx; print(edp_fx.__file__, m.__file__)"], folder)
    if any(not path.startswith(purelib) for path in where.split()):
        sys.exit(f"edp_fx comes from {where}, not from {purelib}")
    return folder / "bin"


def use(programs: Path, folder: Path) -> None:
    """The commands of the release, from an empty folder."""
    folder.mkdir()
    for command in COMMANDS:
        print(run([programs / "edp-fx", *command.split()], folder).rstrip().splitlines()[-1])
    missing = [name for name in MADE if not (folder / name).exists()]
    if missing:
        sys.exit(f"not written: {missing}")


def check_types(programs: Path, folder: Path) -> None:
    """mypy and pyright on a program that uses edp_fx: they find the one mistake in it, and no other."""
    folder.mkdir()
    copy = folder / CONSUMER.name
    copy.write_text(CONSUMER.read_text())
    line = next(k for k, text in enumerate(copy.read_text().splitlines(), 1) if text.startswith("wrong"))
    python = programs / "python"
    checkers: dict[str, list[str | Path]] = {
        "mypy": [sys.executable, "-m", "mypy", "--strict", "--python-executable", python, *CACHE, copy],
        "pyright": [sys.executable, "-m", "pyright", "--pythonpath", python, copy],
    }
    for name, command in checkers.items():
        said = run(command, folder, expected=1)
        found = re.findall(r"consumer\.py:(\d+).*error", said)
        if found != [str(line)]:
            sys.exit(f"{name} finds mistakes in lines {found}, not in {line} alone:\n{said}")
        print(f"{name}: one mistake, where it is")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.release", description=__doc__)
    parser.add_argument("--types", action="store_true", help="mypy and pyright on a program that uses the wheel, too")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="copy wheel and sdist here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edp_fx-release-") as name:
        work = Path(name)
        (work / "dist").mkdir()
        wheel = build(work / "dist")
        programs = environment(wheel, work / "environment")
        use(programs, work / "empty")
        if options.types:
            check_types(programs, work / "consumer")
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            for path in (work / "dist").iterdir():
                (options.keep / path.name).write_bytes(path.read_bytes())


if __name__ == "__main__":
    main()
