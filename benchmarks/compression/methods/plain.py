"""What every method must be held against: the dense network, and the uniformly thinner one from scratch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

import edp_fx
from benchmarks.compression.loop import fit
from benchmarks.compression.trial import Trial
from edp_fx.cost import CostModel
from edp_fx.errors import BudgetError
from edp_fx.passes.prune import prune


def dense(trial: Trial) -> nn.Module:
    """The network as it is."""
    return fit(trial.network(), trial)


def thin(trial: Trial) -> nn.Module:
    """All groups of channels at the largest common share of their width that the target allows."""
    torch.manual_seed(trial.task.seed)
    gm = edp_fx.trace(trial.network(), trial.example)
    graph = edp_fx.analyze(gm, trial.example)
    cost = CostModel(gm, graph)

    def keep(share: float) -> dict[int, Any]:
        return {group.id: np.arange(group.size) < max(1, round(share * group.size)) for group in graph.prunable}

    low, high = 0.0, 1.0
    if cost.total(keep(low)) > trial.goal:
        raise BudgetError(f"{trial.task}: one channel a layer costs more than that")
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if cost.total(keep(middle)) <= trial.goal else (low, middle)
    prune(gm, graph, keep(low))
    initialise(gm)
    return fit(gm, trial)


def initialise(model: nn.Module) -> None:
    """Fresh weights, drawn for the width that the layers have now."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1] // module.groups
            nn.init.normal_(module.weight, 0.0, (2.0 / fan_out) ** 0.5)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.reset_parameters()
        elif isinstance(module, nn.Linear):
            module.reset_parameters()
            nn.init.zeros_(module.bias)
