"""The example of tracking: its geometry, its command, and wrong data in a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.io import write_jpeg

from examples import tracking


def frames(count: int = 8) -> list[Tensor]:
    """A bright square that moves by 4 pixels a frame to the right, on noise."""
    generator = torch.Generator().manual_seed(0)
    ground = 0.3 * torch.rand(3, 96, 128, generator=generator)
    found = []
    for index in range(count):
        frame = ground.clone()
        frame[:, 40:60, 30 + 4 * index : 50 + 4 * index] = 0.9
        found.append(frame)
    return found


def write_frames(directory: Path, count: int = 8) -> Path:
    directory.mkdir()
    for index, frame in enumerate(frames(count)):
        write_jpeg((255 * frame).to(torch.uint8), str(directory / f"{index:03}.jpg"))
    return directory


def test_a_crop_has_what_is_there() -> None:
    frame = frames()[0]
    inside = tracking.crop(frame, (40.0, 50.0), 10.0, 20)
    assert inside.shape == (3, 20, 20)
    assert torch.allclose(inside, torch.tensor(0.9), atol=1e-5)
    whole = tracking.crop(frame, (64.0, 48.0), 96.0, 96)
    assert torch.allclose(whole, frame[:, :, 16:112], atol=1e-5)
    outside = tracking.crop(frame, (-500.0, 50.0), 10.0, 4)
    assert torch.allclose(outside, frame.mean((1, 2), keepdim=True).expand(3, 4, 4), atol=1e-5)


def test_a_tracker_that_sees_brightness_follows_the_square() -> None:
    class Bright(tracking.SiamFC):
        def __init__(self) -> None:
            super().__init__(0.1)
            self.backbone = torch.nn.AvgPool2d(15, tracking.STRIDE)

        def response(self, features: Tensor, regions: Tensor) -> Tensor:
            means = torch.nn.functional.avg_pool2d(regions, 63, tracking.STRIDE)
            return 4 * means.mean(1, keepdim=True)

    found = tracking.track(Bright(), frames(), (30.0, 40.0, 50.0, 60.0))
    true = [(30.0 + 4 * index, 40.0, 50.0 + 4 * index, 60.0) for index in range(8)]
    assert tracking.overlap(found, true) > 0.6
    assert tracking.overlap(true, true) == 1.0


def test_pairs_are_of_one_place() -> None:
    torch.manual_seed(0)
    exemplars, regions, places = tracking.pairs(frames(), 16, 17)
    near = 0
    for exemplar, region, (row, column) in zip(exemplars, regions, places):
        y, x = (64 + tracking.STRIDE * (at - 8) for at in (row, column))
        there = region[:, y : y + tracking.EXEMPLAR, x : x + tracking.EXEMPLAR]
        near += bool((there - exemplar).abs().mean() < (regions.mean((0, 2, 3))[:, None, None] - exemplar).abs().mean())
    assert near > 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--box", "5", "5", "5", "9"], "--box 5 5 5 9 has no area in a frame of 128x96"),
        (["--box", "5", "5", "500", "9"], "--box 5 5 500 9 has no area"),
        (["--box", "5", "5", "25", "25", "--macs", "0.0001"], "budget macs=0.0001 cannot be reached"),
    ],
)
def test_a_wrong_box_or_budget_is_one_line_before_any_training(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tracking.main(["--frames", str(write_frames(tmp_path / "frames")), *options]) == 2
    out, said = capsys.readouterr()
    assert said.count("\n") == 1
    assert message in said and "step" not in out


def test_too_few_or_broken_frames_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    box = ["--box", "30", "40", "50", "60"]
    assert tracking.main(["--frames", str(write_frames(tmp_path / "few", 3)), *box]) == 2
    assert "has 3 *.jpg" in capsys.readouterr().err
    directory = write_frames(tmp_path / "broken")
    (directory / "003.jpg").write_bytes(b"no image")
    assert tracking.main(["--frames", str(directory), *box]) == 2
    assert "003.jpg cannot be read as an image" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_trains_both_and_compares_their_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "small"
    options = ["--frames", str(write_frames(tmp_path / "frames")), "--box", "30", "40", "50", "60", "--out", str(out)]
    assert tracking.main([*options, "--width", "0.1", "--steps", "6", "--batch", "2"]) == 0
    said = capsys.readouterr().out
    assert "backbone: 5 layers, read by correlation" in said
    rows = json.loads((out / "report.json").read_text())["rows"]
    assert rows["compressed"]["MACs"] <= 0.51 * rows["dense"]["MACs"]
    assert 0 <= rows["compressed"]["overlap"] <= 1
