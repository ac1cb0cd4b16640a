"""The methods by name: each takes a trial and returns the trained network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from benchmarks.compression.methods.edp import edp
from benchmarks.compression.methods.plain import dense, thin
from benchmarks.compression.methods.slimming import slimming
from benchmarks.compression.methods.svd import svd
from benchmarks.compression.methods.torch_pruning import group_norm, taylor
from benchmarks.compression.trial import Trial

METHODS: dict[str, Callable[[Trial], nn.Module]] = {
    "dense": dense,
    "thin": thin,
    "edp-budget": edp,
    "tp-group-norm": group_norm,
    "tp-taylor": taylor,
    "svd": svd,
    "edp-ranks": partial(edp, kinds=("rank",)),
    "edp-channels": partial(edp, kinds=("channel",)),
    "edp-lambda": partial(edp, policy="lambda"),
    "slimming": slimming,
}
TORCH_PRUNING = ("tp-group-norm", "tp-taylor")
DESCRIPTIONS = {
    "dense": "the plain network",
    "thin": "every group of coupled channels of the plain network at the same share of its width, from scratch",
    "edp-budget": "ranks and channels, Taylor importance, cubic schedule (the default of edp_fx)",
    "tp-group-norm": "Torch-Pruning, group norm with sparse learning for half of the steps, pruned once, trained on",
    "tp-taylor": "Torch-Pruning, group Taylor importance, pruned in steps on the same cubic schedule as EDP",
    "svd": "trained for half of the steps, every layer cut by singular values, trained on",
    "edp-ranks": "edp-budget that removes ranks only",
    "edp-channels": "edp-budget that removes channels only",
    "edp-lambda": "fixed strengths of the group-sparse penalty: what MACs come out is not asked for",
    "slimming": "L1 on the batch norms' scales for half of the steps, pruned once by them, trained on",
}
