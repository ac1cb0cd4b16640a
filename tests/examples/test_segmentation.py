"""The example of segmentation: runs from its command, and answers wrong data in a line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import edp_fx
from examples import segmentation
from tests.helpers.scenes import scenes


@pytest.mark.slow
def test_segmentation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = scenes(tmp_path / "camvid", {"train": 8, "val": 2, "test": 2}), tmp_path / "out"
    line = f"--data {data} --epochs 2 --batch-size 4 --macs 0.7 --classes 2 --out {out}"
    assert segmentation.main(line.split()) == 0
    said = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in said.splitlines() if line.startswith(("dense ", "compressed "))}
    assert float(rows["compressed"][1]) <= 0.71 * float(rows["dense"][1])
    assert all(0 < float(row[-1]) <= 1 for row in rows.values())
    assert edp_fx.load(out)(torch.randn(1, 3, 48, 64))["out"].shape == (1, 2, 48, 64)


def wrong_data(root: Path, case: str) -> tuple[str, str]:
    """Options, and what the line says."""
    data = scenes(root / "camvid", {"train": 2, "val": 1, "test": 1})
    mask = data / "valannot" / "0.png"
    if case == "no images":
        return f"--data {root}", "no images in train/"
    if case == "no mask":
        mask.unlink()
        return f"--data {data}", "valannot/0.png is missing"
    if case == "a class too many":
        return f"--data {data} --classes 1", "0.png: the class 1 is not below --classes 1, nor --void 11"
    if case == "size":
        Image.new("L", (8, 8)).save(mask)
        return f"--data {data}", "valannot/0.png has the shape (8, 8), its image is 48 high and 64 wide"
    if case == "unreadable":
        mask.write_bytes(b"no image")
        return f"--data {data}", "valannot/0.png"
    return f"--data {data} --network torchvision:lrasp", "no torchvision model is named 'lrasp'"


@pytest.mark.parametrize("case", ["no images", "no mask", "a class too many", "size", "unreadable", "network"])
def test_wrong_scenes_are_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, message = wrong_data(tmp_path, case)
    assert segmentation.main(f"{options} --epochs 1 --out {tmp_path / 'out'}".split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert message in said
    assert not (tmp_path / "out").exists()
