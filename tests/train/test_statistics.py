"""What batch norms normalise by after a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import edp_fx
from edp_fx.data import ArrayDataset, make_loader
from edp_fx.errors import TrainingError
from edp_fx.train import Recipe, Teacher, Trainer, evaluate
from edp_fx.train.precision import mixed_precision
from edp_fx.train.statistics import BATCHES, norms_of, renew_statistics


class Net(nn.Module):
    """Two batch norms, one without statistics, dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16, momentum=0.03)
        self.more, self.free = nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16, track_running_stats=False)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        return self.head(self.drop(self.free(self.more(x)).relu().mean((2, 3))))


def images(count: int = 96) -> ArrayDataset:
    dice = torch.Generator().manual_seed(0)
    return ArrayDataset(
        torch.rand(count, 3, 8, 8, generator=dice),
        torch.randint(10, (count,), generator=dice),
        mean=(0.3,) * 3,
        std=(0.2,) * 3,
    )


def test_they_are_the_mean_of_the_batches_and_all_else_is_left() -> None:
    net = Net().train()
    before = {name: one.clone() for name, one in net.named_parameters()}
    batches = [(2 * torch.randn(8, 3, 8, 8) + 1,) for _ in range(5)]
    renew_statistics(net, batches)
    with torch.no_grad():
        outputs = [net.conv(batch) for (batch,) in batches]
    means = torch.stack([one.mean((0, 2, 3)) for one in outputs]).mean(0)
    variances = torch.stack([one.var((0, 2, 3)) for one in outputs]).mean(0)
    torch.testing.assert_close(net.norm.running_mean, means)
    torch.testing.assert_close(net.norm.running_var, variances)
    assert net.norm.momentum == 0.03 and not net.training and norms_of(net) == [net.norm]
    assert all(torch.equal(one, before[name]) for name, one in net.named_parameters())


def test_no_more_batches_are_read_than_it_takes() -> None:
    read: list[int] = []

    def batches() -> Any:
        for number in range(2 * BATCHES):
            read.append(number)
            yield (torch.randn(4, 3, 8, 8),)

    renew_statistics(Net(), batches())
    assert len(read) == BATCHES


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_run_that_renews_them_is_judged_and_ends_with_them(ema: float) -> None:
    """Of the weights it ends with, in float32, though it multiplied in bfloat16."""
    loader, judged = (make_loader(images(), 32, train=train, seed=0) for train in (True, False))
    outcomes = {}
    for statistics in ("moving", "anew"):
        gm = edp_fx.trace(Net(), torch.randn(2, 3, 8, 8))
        recipe = Recipe(epochs=2, mixed_precision="bf16", ema=ema)
        outcomes[statistics] = Trainer(gm, loader, recipe, val_loader=judged, statistics=statistics).run()
    moving, anew = (outcomes[one].model for one in ("moving", "anew"))
    for (name, one), other in zip(anew.named_parameters(), moving.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert not torch.allclose(anew.norm.running_mean, moving.norm.running_mean, atol=1e-4)
    score = outcomes["anew"].validation
    assert score is not None and score.loss == pytest.approx(evaluate(anew, judged).loss, abs=1e-6)
    kept = anew.norm.running_mean.clone()
    renew_statistics(anew, (batch[:1] for batch in loader))
    torch.testing.assert_close(anew.norm.running_mean, kept, rtol=0.05, atol=0.02)


def test_another_word_for_them_is_refused() -> None:
    loader = make_loader(images(), 32, train=True, seed=0)
    with pytest.raises(TrainingError, match="statistics=fresh: give one of moving, held, anew"):
        Trainer(edp_fx.trace(Net(), torch.randn(2, 3, 8, 8)), loader, Recipe(epochs=1), statistics="fresh")


def test_a_trained_network_that_is_compressed_gets_them_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    loader, renewed = make_loader(images(), 32, train=True, seed=0), []
    monkeypatch.setattr("edp_fx.train.trainer.renew_statistics", lambda network, batches: renewed.append(network))
    for method in ("trained", "scratch", "one-shot"):
        edp_fx.compress(Net(), loader, method=method, macs=0.6, epochs=1, align=1)
        assert len(renewed) == 1, method


def test_on_a_processor_a_teacher_multiplies_as_the_run_does() -> None:
    teacher, x = Teacher(Net(), 0.5, 2.0), torch.randn(4, 3, 8, 8)
    seen: list[torch.dtype] = []
    teacher.network.conv.register_forward_hook(lambda layer, given, made: seen.append(made.dtype))
    teacher.outputs((x,))
    with mixed_precision("cpu", torch.bfloat16):
        said = teacher.outputs((x,))
    assert seen == [torch.float32, torch.bfloat16] and said.dtype == torch.float32
