"""Truncated singular value decomposition of every layer, then fine-tuning."""

from __future__ import annotations

from torch import nn

import edp_fx
from benchmarks.compression.loop import fit
from benchmarks.compression.trial import Trial
from edp_fx import Method
from edp_fx.one_shot import one_shot


def svd(trial: Trial) -> nn.Module:
    """Train the plain network, keep of each layer the largest shares of its energy that the target allows, train on."""
    gm = edp_fx.trace(trial.network(), trial.example)

    def after_step(step: int) -> nn.Module | None:
        if step != trial.steps // 2:
            return None
        return one_shot(gm, trial.example, Method.preset("truncate", macs=trial.task.target)).gm

    return fit(gm, trial, after_step=after_step)
