"""Compiled steps: as many compilations as shapes, the same run, and one line where torch cannot."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import edp_fx
from edp_fx.errors import TrainingError
from edp_fx.inputs import randomize_
from edp_fx.train import Recipe
from edp_fx.train.compiled import Compiled


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        return self.head(torch.relu(self.norm2(self.conv2(x))).mean((2, 3)))


def made() -> Net:
    torch.manual_seed(0)
    net = Net()
    randomize_(net)
    return net


def batches(count: int = 68) -> DataLoader[Any]:
    """The last batch is smaller than the others."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 4
    images = torch.randn(count, 3, 8, 8, generator=generator) + labels[:, None, None, None]
    return DataLoader(TensorDataset(images, labels), 16)


def run(epochs: int = 8, **fields: Any) -> Any:
    recipe = Recipe(epochs=epochs, **fields)
    return edp_fx.compress(made(), batches(), recipe=recipe, macs=0.5, start=0.2, end=0.8, removals=4).eval()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """torch.compile up to code generation, which takes most of the time; what it was called on."""
    calls: list[Any] = []
    compile_ = partial(torch.compile, backend="eager")

    def compiled(network: nn.Module, mode: str, dynamic: bool) -> Any:
        calls.append(mode)
        return compile_(network, dynamic=dynamic)

    monkeypatch.setattr(torch, "compile", compiled)
    return calls


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_compiled_run_is_the_run_and_is_compiled_once_for_every_shape(counted: list[Any], accumulate: int) -> None:
    compiled, plain = run(compiled=True, accumulate=accumulate), run(accumulate=accumulate)
    shapes = [event for event in compiled.meta["edp_fx.run"]["events"] if event["event"] == "shrink"]
    assert 1 + len(shapes) >= len(counted) >= 3
    here, there = compiled.state_dict(), plain.state_dict()
    assert {name: one.shape for name, one in here.items()} == {name: one.shape for name, one in there.items()}
    for name, value in here.items():
        torch.testing.assert_close(value, there[name], rtol=1e-3, atol=1e-4)


def test_each_removal_is_compiled_unless_told_otherwise_there_are_four(counted: list[Any]) -> None:
    small = edp_fx.compress(made(), batches(), recipe=Recipe(epochs=10, compiled=True), macs=0.5, start=0.1, end=0.9)
    shrunk = [event for event in small.meta["edp_fx.run"]["events"] if event["event"] == "shrink"]
    assert 1 <= len(shrunk) <= 4
    assert small.meta["edp_fx.run"]["method"]["removals"] == 4


def test_a_batch_of_another_size_runs_as_it_is(counted: list[Any]) -> None:
    images = torch.randn(4, 3, 8, 8)
    gm = edp_fx.trace(made(), images).eval()
    network = Compiled(gm, gm, captured=True)
    seen: list[int] = []
    gm.register_forward_hook(lambda module, given, output: seen.append(len(given[0])))
    torch.testing.assert_close(network(images), gm(images))
    seen.clear()
    torch.testing.assert_close(network(images[:3]), gm(images[:3]))
    assert seen == [3, 3]


def test_without_a_compiler_one_line_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    missing = config.patch({"cpp.cxx": (None, "no-such-compiler")})
    with missing, pytest.raises(TrainingError, match=r"leave compiled out: .*no-such-compiler") as caught:
        run(compiled=True)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_compiled_for_real() -> None:
    small = run(compiled=True)
    assert small.meta["edp_fx.run"]["macs"] <= 0.5
