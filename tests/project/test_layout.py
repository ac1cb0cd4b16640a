"""The top level, and that the passes have one name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_passes_is_a_relative_symlink() -> None:
    link = ROOT / "edp_fx" / "passes"
    assert link.is_symlink()
    assert str(link.readlink()) == "../passes"


def test_a_bare_import_of_passes_fails_and_ruff_forbids_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import passes"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "import edp_fx.passes" in done.stderr
    bad = ROOT / "tests" / "_bad_import.py"
    try:
        bad.write_text("import passes\n")
        checked = subprocess.run(
            [sys.executable, "-m", "ruff", "check", "--select", "TID251", str(bad)],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        bad.unlink()
    assert "TID251" in checked.stdout


def test_the_command_line_starts_without_heavy_imports() -> None:
    code = "import edp_fx.cli, sys; print([m for m in ('timm', 'onnx', 'sklearn', 'accelerate') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
