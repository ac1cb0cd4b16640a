"""This library, as a user would add it to a loop of his own."""

from __future__ import annotations

from typing import Any

from torch import nn

import edp_fx
from benchmarks.compression.loop import fit
from benchmarks.compression.trial import Trial
from edp_fx import Compressor, Method

# λ for 4,690 steps of ResNet-20; what shrinks is about λ times steps. 9.5e-4 left 0.69 of the MACs, 1.5e-3 0.09 and no
# accuracy
STRENGTH, STRENGTH_STEPS = 1.2e-3, 4690
# what each method changes of the trial's
EDP: dict[str, dict[str, Any]] = {
    "edp-budget": {},
    # alone ranks could not reach 0.15 of ResNet-20 in blocks: in fours the least is 0.1694
    "edp-ranks": {"kinds": ("rank",), "align": 1},
    "edp-kernels": {"kinds": ("channel", "kernel")},
    "edp-channels": {"kinds": ("channel",)},
    "edp-pairs": {"kinds": ("rank", "channel")},
}


def edp(trial: Trial, name: str) -> nn.Module:
    """Train to the trial's target by its method with the changes of ``name``."""
    return _train(trial, trial.method.changed(**EDP[name]))


def edp_lambda(trial: Trial) -> nn.Module:
    """Train by the paper's method: no MACs are asked for."""
    return _train(trial, Method.preset("paper", strength=STRENGTH * STRENGTH_STEPS / trial.steps))


def _train(trial: Trial, method: Method) -> nn.Module:
    """Pairs from the start where ranks may go, a :class:`Compressor`, one run."""
    gm = edp_fx.trace(trial.network(), trial.example)
    if "rank" in (method.kinds or ()):
        gm = edp_fx.insert(gm, start=method.pairs)
    optimizer = trial.recipe.make_optimizer(gm)
    compressor = Compressor(gm, trial.example, method, optimizer=optimizer, total_steps=trial.steps)

    def after_step(step: int) -> nn.Module | None:
        return compressor.gm if compressor.step() else None

    fit(compressor.gm, trial, optimizer=optimizer, after_step=after_step)
    return compressor.finish()
