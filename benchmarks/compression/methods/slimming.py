"""Network slimming (Liu et al., ICCV 2017), with Torch-Pruning's groups for the coupled channels."""

from __future__ import annotations

import torch_pruning
from torch import nn

from benchmarks.compression.methods.torch_pruning import options, sparse_then_pruned
from benchmarks.compression.trial import Trial

# the paper's 1e-4 acts for ten times as long
STRENGTH = 1e-3


def slimming(trial: Trial) -> nn.Module:
    """L1 on the scales of the batch norms for half of the steps, the smallest removed, trained on."""
    model = trial.network()
    importance = torch_pruning.importance.BNScaleImportance()
    pruner = torch_pruning.pruner.BNScalePruner(model, trial.example, importance, reg=STRENGTH, **options(model, trial))
    return sparse_then_pruned(model, pruner, trial)
