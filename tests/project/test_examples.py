"""The examples that need no download run from end to end on a few small pictures."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch

import edp_fx
from tests.helpers.scenes import scenes

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.setattr(sys, "argv", line.split())
    runpy.run_path(str(EXAMPLES / line.split()[0]), run_name="__main__")


@pytest.mark.slow
def test_segmentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = scenes(tmp_path / "camvid", {"train": 8, "val": 2, "test": 2}), tmp_path / "out"
    run(monkeypatch, f"segmentation.py --data {data} --epochs 2 --batch-size 4 --macs 0.7 --classes 2 --out {out}")
    said = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in said.splitlines() if line.startswith(("dense ", "compressed "))}
    assert float(rows["compressed"][1]) <= 0.71 * float(rows["dense"][1])
    assert all(0 < float(row[-1]) <= 1 for row in rows.values())
    assert edp_fx.load(out)(torch.randn(1, 3, 48, 64))["out"].shape == (1, 2, 48, 64)


def test_segmentation_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = scenes(tmp_path / "camvid", {"train": 2, "val": 1, "test": 1})
    (data / "valannot" / "0.png").unlink()
    with pytest.raises(SystemExit, match=r"valannot/0.png is missing"):
        run(monkeypatch, f"segmentation.py --data {data} --epochs 1")
    with pytest.raises(SystemExit, match=r"no images in train/"):
        run(monkeypatch, f"segmentation.py --data {tmp_path} --epochs 1")
