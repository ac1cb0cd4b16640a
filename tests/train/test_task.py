"""Any task: a loss and a metric of one's own, batches of any form, by compress() and by the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import edp_fx
from edp_fx.cli import main
from edp_fx.errors import EdpError, TrainingError
from edp_fx.train import Recipe, Task, evaluate

SEGMENTER = """
import torch
from torch import nn
from torch.nn import functional as F

class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
        )
        self.head = nn.Conv2d(24, 2, 1)
    def forward(self, x):
        return {"out": F.interpolate(self.head(self.body(x)), size=x.shape[-2:], mode="bilinear")}

def net():
    torch.manual_seed(0)
    return Segmenter(), torch.randn(2, 3, 16, 16)

def images(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pictures = 0.3 * torch.randn(count, 3, 16, 16, generator=generator)
    masks = torch.zeros(count, 16, 16, dtype=torch.long)
    for number in range(count):
        row, column = torch.randint(0, 10, (2,), generator=generator).tolist()
        masks[number, row : row + 6, column : column + 6] = 1
    return pictures + masks[:, None], masks

class Overlap:
    name = "mIoU"
    def reset(self):
        self.counts = torch.zeros(2, 2)
    def update(self, outputs, targets):
        found = outputs["out"].argmax(1)
        for label in (0, 1):
            mine, true = found == label, targets == label
            self.counts[label] += torch.tensor([float((mine & true).sum()), float((mine | true).sum())])
    def compute(self):
        return (self.counts[:, 0] / self.counts[:, 1]).mean()

def loaders(batch_size):
    def loader(count, seed):
        whole = torch.utils.data.TensorDataset(*images(count, seed))
        return torch.utils.data.DataLoader(whole, batch_size=batch_size)
    return {"train": loader(64, 0), "val": loader(16, 1)}

class Squares:
    data = staticmethod(loaders)
    metric = Overlap()
    def loss(outputs, targets):
        return F.cross_entropy(outputs["out"], targets)
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The user's module, in the directory he is in."""
    (tmp_path / "mysegmenter.py").write_text(SEGMENTER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import importlib
    import sys

    sys.modules.pop("mysegmenter", None)
    return importlib.import_module("mysegmenter")


def run(line: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(line.split())
    return int(stop.value.code or 0)


def test_a_segmenter_learns_while_it_is_compressed(mine: Any, tmp_path: Path) -> None:
    model, x = mine.net()
    data = mine.loaders(8)
    before = evaluate(model, data["val"], Task(mine.Squares.loss, mine.Overlap()))
    small = edp_fx.compress(
        model, data["train"], epochs=6, macs=0.5, val_loader=data["val"], loss=mine.Squares.loss, metric=mine.Overlap()
    )
    after = evaluate(small, data["val"], Task(mine.Squares.loss, mine.Overlap()))
    assert after.name == "mIoU"
    assert after.images == 16
    assert after.metric is not None
    assert before.metric is not None
    assert after.metric > max(0.7, before.metric)
    assert after.loss < before.loss
    assert small.meta["edp_fx.run"]["macs"] <= 0.5
    back = edp_fx.load(edp_fx.save(small, tmp_path / "saved", x))
    assert back(x)["out"].shape == (2, 2, 16, 16)


def test_teacher_average_and_resume(mine: Any, tmp_path: Path) -> None:
    model, _ = mine.net()

    def train(directory: Path, watcher: Any = None, resume: bool = False) -> nn.Module:
        return edp_fx.compress(
            model,
            mine.loaders(16)["train"],
            method="trained",
            recipe=Recipe(epochs=2, ema=0.9),
            macs=0.6,
            loss=mine.Squares.loss,
            directory=directory,
            watcher=watcher,
            resume=resume,
        )

    class Stop(edp_fx.train.Silent):
        def epoch(self, *args: Any) -> None:
            if self.done:
                raise KeyboardInterrupt
            self.done = True

        done = False

    whole = train(tmp_path / "whole").state_dict()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", Stop())
    again = train(tmp_path / "parts", resume=True).state_dict()
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Linear(5, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, image: Tensor, facts: Tensor) -> Tensor:
        return self.out(F.relu(self.a(image)).mean((2, 3)) + self.b(facts))


IMAGE, FACTS, LABELS = torch.randn(8, 3, 8, 8), torch.randn(8, 5), torch.arange(8) % 3


@pytest.mark.parametrize(
    "batch",
    [
        (IMAGE, FACTS, LABELS),
        ((IMAGE, FACTS), LABELS),
        [[IMAGE, FACTS], LABELS],
    ],
    ids=["flat", "nested", "lists"],
)
def test_two_inputs(batch: Any) -> None:
    small = edp_fx.compress(Two(), [batch] * 4, epochs=2, macs=0.7)
    assert small(IMAGE, FACTS).shape == (8, 3)
    assert evaluate(small, [batch]).images == 8


def test_dictionaries_by_the_names_of_the_arguments() -> None:
    batch = {"labels": LABELS, "facts": FACTS, "image": IMAGE, "name": ["x"] * 8}
    small = edp_fx.compress(
        Two(), [batch] * 4, epochs=2, macs=0.7, loss=lambda outputs, rest: F.cross_entropy(outputs, rest["labels"])
    )
    assert small(IMAGE, FACTS).shape == (8, 3)
    with pytest.raises(TrainingError, match="dictionary of image, labels, and the model's input is called 'facts'"):
        edp_fx.compress(Two(), [{"image": IMAGE, "labels": LABELS}], epochs=1, macs=0.7, example_inputs=(IMAGE, FACTS))


def test_lists_of_boxes() -> None:
    def loss(outputs: Tensor, boxes: list[Tensor]) -> Tensor:
        wanted = torch.zeros_like(outputs)
        for row, some in enumerate(boxes):
            for x, y, _, _ in some.long().tolist():
                wanted[row, 0, y, x] = 1
        return F.binary_cross_entropy_with_logits(outputs, wanted)

    boxes = [torch.tensor([[1.0, 2, 3, 4]] * (number % 3)).reshape(-1, 4) for number in range(8)]
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 3, padding=1))
    small = edp_fx.compress(net, [(IMAGE, boxes)] * 6, epochs=2, macs=0.5, loss=loss, metric=lambda *_: 0.25)
    score = evaluate(small, [(IMAGE, boxes)], Task(loss, lambda *_: 0.25))
    assert (score.metric, score.images, score.name) == (0.25, 8, "<lambda>")
    assert evaluate(small, [(IMAGE, boxes)], Task(loss)).metric is None


def fails(outputs: Any, targets: Any) -> Tensor:
    return outputs.none


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            fails,
            r"the loss fails fails on a tensor \[8, 2, 6, 6\] of float32 and a tensor \[8\] of int64: AttributeError",
        ),
        (lambda outputs, targets: outputs, r"gives a tensor \[8, 2, 6, 6\] of float32: give one number"),
        (lambda outputs, targets: 3, "gives a int: give one number"),
        (3, "loss: a int is no function"),
        (None, r"a tensor \[2, 2, 6, 6\] of float32, not .images, classes.: give loss="),
    ],
)
def test_a_loss_that_cannot_be(loss: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message) as caught:
        edp_fx.compress(nn.Conv2d(3, 2, 3), [(IMAGE, LABELS)] * 2, epochs=1, macs=0.7, loss=loss)
    assert "\n" not in str(caught.value)


def test_nothing_given_is_left_out_in_silence() -> None:
    smooth = Recipe(epochs=1, label_smoothing=0.1)
    with pytest.raises(TrainingError, match="label_smoothing is of the default loss"):
        edp_fx.compress(Two(), [(IMAGE, FACTS, LABELS)], recipe=smooth, macs=0.7, loss=F.cross_entropy)
    with pytest.raises(TrainingError, match="loss applies to training only"):
        edp_fx.compress(Two(), [(IMAGE, FACTS, LABELS)], epochs=0, macs=0.7, loss=F.cross_entropy)


def test_classes_are_the_default() -> None:
    net: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    scores: list[Callable[..., Any]] = [lambda m, b: evaluate(m, b), lambda m, b: evaluate(m, b, Task(F.cross_entropy))]
    first, second = (score(net, [(IMAGE, LABELS), (IMAGE[:3], LABELS[:3])]) for score in scores)
    assert first == second
    right = sum(int((net(x).argmax(1) == y).sum()) for x, y in ((IMAGE, LABELS), (IMAGE[:3], LABELS[:3])))
    assert first.accuracy == right / 11
    assert first.top5 == 1.0
    with pytest.raises(TrainingError, match="label 7 in the data, but the network gives 3 classes"):
        evaluate(net, [(IMAGE, LABELS + 5)])


def test_by_the_command(mine: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "compress mysegmenter:net --task mysegmenter:Squares --macs 0.6 --epochs 2 --batch-size 16 --target onnx"
    assert run(f"{line} --no-baseline --out small") == 0
    said = capsys.readouterr().out
    assert "data: task mysegmenter:Squares" in said
    assert "judged on those for validation" in said
    assert "test mIoU" in said
    report = json.loads(Path("small/report.json").read_text())
    assert report["judged_by"] == "mIoU"
    assert 0 < report["compressed"]["metric"] < 1
    assert run("report small") == 0
    assert run("evaluate small --task mysegmenter:Squares --split val --engine small/model.onnx --json x.json") == 0
    mine_, engine = json.loads(Path("x.json").read_text()).values()
    assert abs(mine_["metric"] - engine["metric"]) < 1e-3
    assert abs(mine_["metric"] - report["compressed"]["metric"]) < 1e-6
    capsys.readouterr()
    for wrong, message in (
        ("mysegmenter:net", "give an object with loss, metric or data"),
        ("mysegmenter:loaders", "fails: TypeError"),
        ("mysegmenter:none", "cannot import"),
    ):
        assert run(f"compress mysegmenter:net --task {wrong} --macs 0.6 --epochs 1 --out new") == 2
        assert message in capsys.readouterr().err
    assert not Path("new").exists()


def test_a_callable_brings_its_loss_and_a_task_comes_before_it(mine: Any, tmp_path: Path) -> None:
    from edp_fx.job.tasks import load_task
    from edp_fx.models import load_model

    (tmp_path / "own2.py").write_text(
        "import mysegmenter as m\n"
        "def net():\n    model, x = m.net()\n"
        "    return {'model': model, 'example_inputs': x, 'loss': m.Squares.loss, 'metric': m.Overlap()}\n"
        "def other():\n    return {'data': m.loaders, 'metric': len}\n"
    )
    loaded, brought = load_model("own2:net"), load_task("own2:other")
    task = brought.with_model(loaded.loss, loaded.metric)
    assert (task.loss, task.metric) == (mine.Squares.loss, len)
    assert load_task(None).with_model(loaded.loss, loaded.metric).metric.name == "mIoU"
    data = brought.load_data(16, batch_size=8, seed=0, workers=0)
    assert len(data.train) == 8
    assert "8 train / 2 val batches" in data.describe()


def test_data_twice_is_refused(mine: Any) -> None:
    from edp_fx.job import Job, Runner, read_plan

    given = {
        "model": {"spec": "mysegmenter:net"},
        "data": {"spec": "digits"},
        "method": {"macs": 0.6},
        "recipe": {"epochs": 1},
        "task": "mysegmenter:Squares",
    }
    with pytest.raises(EdpError, match="has data of its own"):
        Runner(Job(read_plan(None, given), Path("out"))).run()
