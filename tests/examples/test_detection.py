"""The example of detection: runs from its command, and answers wrong data in a line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import edp_fx
from examples import detection, voc
from tests.helpers.voc import write_annotation, write_voc


def found(*boxes: tuple[float, float, float, float], scores: list[float] | None = None) -> voc.Target:
    target = {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.ones(len(boxes), dtype=torch.int64)}
    return target if scores is None else {**target, "scores": torch.tensor(scores)}


def test_average_precision() -> None:
    here, there, off = (0.0, 0.0, 10.0, 10.0), (20.0, 20.0, 30.0, 30.0), (50.0, 50.0, 60.0, 60.0)
    wanted = [found(here, there), found()]
    nothing = found(scores=[])
    assert voc.average_precision([found(here, there, scores=[0.9, 0.8]), nothing], wanted) == 1.0
    assert voc.average_precision([found(here, scores=[0.9]), nothing], wanted) == 0.5
    assert voc.average_precision([nothing, found(here, scores=[0.9])], wanted) == 0.0
    # a wrong one between the two: precision 1 up to half of all, then 2/3
    between = found(here, off, there, scores=[0.9, 0.8, 0.7])
    assert voc.average_precision([between, nothing], wanted) == pytest.approx(0.5 + 0.5 * 2 / 3)
    # the same box twice counts once
    twice = found(here, here, there, scores=[0.9, 0.8, 0.7])
    assert voc.average_precision([twice, nothing], wanted) == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_a_flipped_image_has_flipped_boxes(tmp_path: Path) -> None:
    annotations = voc.read_annotations(write_voc(tmp_path, 1))
    torch.manual_seed(0)
    rows = [voc.Boxes(annotations, ["square"], flip=True)[0] for _ in range(8)]
    assert len({tuple(target["boxes"][0].tolist()) for _, target in rows}) == 2
    for image, target in rows:
        x1, y1, x2, y2 = (int(one) for one in target["boxes"][0])
        assert image[:, y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].mean() > 0.8 > 0.6 > image[:, :, : max(1, x1 - 2)].mean()


def wrong_data(directory: Path, case: str) -> tuple[list[str], str]:
    """Options, and what the line says."""
    if case == "no directory":
        return ["--data", str(directory / "none")], "has no annotations/*.xml"
    write_voc(directory)
    if case == "empty box":
        write_annotation(directory, 3, "square", (5, 5, 5, 20))
        return [], "03.xml: the box (5.0, 5.0, 5.0, 20.0) of 'square' has no area"
    if case == "a class too many":
        write_annotation(directory, 3, "circle", (5, 5, 25, 20))
        return ["--classes", "square"], "03.xml: the class 'circle' is not among square"
    if case == "a class in test images only":
        write_annotation(directory, 5, "circle", (5, 5, 25, 20))
        return [], "the class 'circle' is in test images only"
    if case == "missing image":
        (directory / "images" / "04.jpg").unlink()
        return [], "04.jpg, which does not exist"
    if case == "no XML":
        (directory / "annotations" / "02.xml").write_text("box")
        return [], "02.xml is no VOC annotation"
    if case == "batch":
        return ["--batch", "9"], "--batch 9 is more than the 8 training images"
    if case == "removal":
        return ["--removal", "0.5", "0.2"], "start=0.5, end=0.2: the end must come after the start"
    if case == "share":
        return ["--macs", "0.0001"], "budget macs=0.0001 cannot be reached"
    return ["--model", "resnet1"], "torchvision has no model 'resnet1'"


CASES = (
    "no directory", "empty box", "a class too many", "a class in test images only", "missing image", "no XML", "batch",
    "removal", "share", "model",
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_wrong_data_is_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, message = wrong_data(tmp_path / "data", case)
    status = detection.main(["--data", str(tmp_path / "data"), "--batch", "4", *options])
    said = capsys.readouterr().err
    assert status == 2
    assert said.startswith("error: ") and said.count("\n") == 1
    assert message in said


@pytest.mark.slow
def test_the_command_trains_writes_and_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_voc(tmp_path / "data"), tmp_path / "small"
    options = ["--data", str(data), "--device", "cpu", "--batch", "4", "--out", str(out)]
    assert detection.main([*options, "--epochs", "2", "--macs", "0.6", "--removal", "0.1", "0.6"]) == 0
    said = capsys.readouterr().out
    assert "epoch 2/2" in said and "backbone: 74 layers, read by head" in said
    assert {file.name for file in out.iterdir()} == {"weights.safetensors", "recipe.json", "report.json"}
    rows = json.loads((out / "report.json").read_text())["rows"]
    assert list(rows) == ["dense", "compressed"]
    assert rows["compressed"]["MACs"] <= 0.601 * rows["dense"]["MACs"]
    assert detection.main(["--data", str(data), "--evaluate", str(out)]) == 0
    again = capsys.readouterr().out
    assert f"{100 * rows['compressed']['AP50']:.1f} %" in again


@pytest.mark.slow
def test_a_yolo_trains_by_its_own_loss_and_gives_boxes_in_pixels(tmp_path: Path) -> None:
    pytest.importorskip("ultralytics", exc_type=ImportError)
    annotations = voc.read_annotations(write_voc(tmp_path, 4))
    images, targets = voc.collate([voc.Boxes(annotations, ["square"])[index] for index in range(4)])
    torch.manual_seed(0)
    model = detection.build("yolo11n", 1, 64, 512, pretrained=False)
    parts = edp_fx.trace_parts(model, (images, targets))
    assert {"model.model.0", "model.model.23.cv3.0"} <= set(str(parts).replace(":", "").split())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.train()
    losses = []
    for _ in range(12):
        loss = model(images, targets)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    scaled = [{**target, "boxes": target["boxes"] * 2} for target in targets]
    larger = [torch.nn.functional.interpolate(image[None], scale_factor=2)[0] for image in images]
    assert float(model(larger, scaled)["loss"]) == pytest.approx(float(model(images, targets)["loss"]), rel=0.2)
    found = model.eval()(images)
    assert len(found) == 4 and all(set(one) == {"boxes", "scores", "labels"} for one in found)
    assert all((one["labels"] == 1).all() for one in found)


def test_a_yolo_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_voc(tmp_path / "data")
    line = ["--data", str(data), "--batch", "4", "--model", "yolo11n"]
    assert detection.main([*line, "--size", "100"]) == 2
    assert capsys.readouterr().err == "error: --size 100: yolo11n takes sizes that 32 divides\n"
    monkeypatch.setitem(sys.modules, "ultralytics.cfg", None)
    assert detection.main(line) == 2
    assert capsys.readouterr().err == "error: yolo11n is ultralytics': pip install ultralytics\n"


@pytest.mark.slow
def test_a_yolo_that_does_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ultralytics", exc_type=ImportError)
    data = write_voc(tmp_path / "data")
    assert detection.main(["--data", str(data), "--batch", "4", "--model", "yolo99n"]) == 2
    assert capsys.readouterr().err == "error: ultralytics has no model 'yolo99n'\n"
