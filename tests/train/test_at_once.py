"""From trained weights: all goes before the first step, what stays is refitted, and then learns on."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import edp_fx
from edp_fx.data import load_data
from edp_fx.errors import BudgetError, CheckpointError
from edp_fx.train import Recipe, Trainer, evaluate

SIDE = 16
EXAMPLE = torch.zeros(2, 3, SIDE, SIDE)
FEW = Recipe(epochs=2, optimizer="sgd", lr=0.01)


class Net(nn.Module):
    """Two convolutions tied by a sum, and one between."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(32, 48, 3, 1, 1, bias=False), nn.BatchNorm2d(48), nn.ReLU())
        self.back = nn.Sequential(nn.Conv2d(48, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head((x + self.back(self.inner(x))).relu().mean((2, 3)))


class Interrupted:
    """A loader that stops the program after so many batches."""

    def __init__(self, loader: Any, after: int) -> None:
        self.loader, self.sampler, self.left = loader, loader.sampler, after

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt
            yield batch


@pytest.fixture(scope="module")
def digits() -> Any:
    return load_data("digits", batch_size=64, img_size=SIDE, seed=0)


@pytest.fixture(scope="module")
def trained(digits: Any) -> nn.Module:
    torch.manual_seed(0)
    return Trainer(edp_fx.trace(Net(), EXAMPLE), digits.train, Recipe(epochs=5, lr=0.02)).run().model.cpu().eval()


def test_it_starts_small_and_ends_better_than_step_by_step(trained: nn.Module, digits: Any, tmp_path: Path) -> None:
    before = copy.deepcopy(trained.state_dict())
    small = edp_fx.compress(trained, digits.train, method="one-shot", macs=0.3, recipe=FEW, directory=tmp_path)
    assert edp_fx.measure(small, EXAMPLE).macs <= 0.3 * edp_fx.measure(trained, EXAMPLE).macs
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [one["event"] for one in records[:2]] == ["decision", "shrink"]
    assert all(one["macs"] <= 0.3 for one in records if "loss" in one)  # from the first step on
    step_by_step = edp_fx.compress(trained, digits.train, method="scratch", teacher=trained, macs=0.3, recipe=FEW)
    untrained = edp_fx.compress(trained, digits.train, epochs=0, macs=0.3)
    scores = [evaluate(one, digits.test).accuracy for one in (small, step_by_step, untrained)]
    assert scores[0] >= max(scores) - 0.01
    assert all(torch.equal(before[name], value) for name, value in trained.state_dict().items())


def test_statistics_stay_those_of_the_trained_network(trained: nn.Module, digits: Any) -> None:
    start = edp_fx.compress(trained, digits.train, epochs=0, macs=0.5)
    small = edp_fx.compress(trained, digits.train, method="one-shot", macs=0.5, recipe=FEW)
    norms = [one for one in small.modules() if isinstance(one, nn.BatchNorm2d)]
    others = [one for one in start.modules() if isinstance(one, nn.BatchNorm2d)]
    for norm, other in zip(norms, others, strict=True):
        assert norm.num_batches_tracked == other.num_batches_tracked
        assert not torch.equal(norm.weight, other.weight)


def test_a_run_that_stopped_goes_on_bit_for_bit(trained: nn.Module, digits: Any, tmp_path: Path) -> None:
    given: dict[str, Any] = {"method": "one-shot", "macs": 0.5, "recipe": FEW.changed(ema=0.9)}
    whole = edp_fx.compress(trained, digits.train, **given)
    stopping = Interrupted(digits.train, 256 // 64 + len(digits.train) + 5)  # chosen by, an epoch, in the second
    with pytest.raises(KeyboardInterrupt):
        edp_fx.compress(trained, stopping, **given, directory=tmp_path)
    resumed = edp_fx.compress(trained, digits.train, **given, directory=tmp_path, resume=True)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_other_images_would_choose_otherwise_and_are_refused(trained: nn.Module, digits: Any, tmp_path: Path) -> None:
    given: dict[str, Any] = {"method": "one-shot", "macs": 0.5, "directory": tmp_path}
    edp_fx.compress(trained, digits.train, recipe=FEW, **given)
    others = [(torch.randn(64, 3, SIDE, SIDE), torch.randint(10, (64,))) for _ in range(len(digits.train))]
    with pytest.raises(CheckpointError, match="must see the same images"):
        edp_fx.compress(trained, others, recipe=FEW, **given, resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": 0.1}, "start does not apply: the importance reconstruction removes all before the first step"),
        ({"kinds": ("kernel",)}, "nothing weighs kernel"),
        ({"pairs": "identity"}, "must start spectral"),
    ],
)
def test_what_would_do_nothing_is_refused(
    trained: nn.Module, digits: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BudgetError, match=message):
        edp_fx.compress(trained, digits.train, method="one-shot", macs=0.5, epochs=1, **changes)


class Heard(edp_fx.train.Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.rounds: dict[str, list[tuple[int, int]]] = {}

    def look(self, what: str, done: int, total: int) -> None:
        self.rounds.setdefault(what.split()[0], []).append((done, total))


@pytest.mark.parametrize("epochs", [0, 1])
def test_what_takes_long_before_the_first_step_is_told(epochs: int, digits: Any) -> None:
    heard = Heard()
    torch.manual_seed(0)
    recipe = Recipe(epochs=epochs)
    edp_fx.compress(Net(), digits.loaders["train"], recipe=recipe, method="one-shot", macs=0.7, align=4, watcher=heard)
    assert list(heard.rounds) == ["choosing", "refitting"]
    for rounds in heard.rounds.values():
        total = rounds[0][1]
        assert total > 1 and rounds == [(done, total) for done in range(total + 1)]


def test_a_terminal_gets_a_line_for_each() -> None:
    console = Console(record=True, width=80)
    with edp_fx.train.RichWatcher(console) as watcher:
        for done in range(3):
            watcher.look("refitting 2 layers", done, 2)
        watcher.begin("compressing", 1, 1, 0.5)
        watcher.epoch(0, 0.5, None, 0.5)
    lines = [line.split() for line in console.export_text().splitlines() if line.strip()]
    assert lines == [["refitting", "2", "layers"], "compressing epoch 1/1 loss 0.5000 MACs 0.500 / 0.500".split()]
