"""The methods by name: each takes a trial and returns the trained network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from benchmarks.compression.methods.edp import EDP, edp, edp_lambda
from benchmarks.compression.methods.plain import dense, thin
from benchmarks.compression.methods.slimming import slimming
from benchmarks.compression.methods.svd import svd
from benchmarks.compression.methods.torch_pruning import group_norm, taylor
from benchmarks.compression.trial import Trial

METHODS: dict[str, Callable[[Trial], nn.Module]] = {
    "dense": dense,
    "thin": thin,
    **{name: partial(edp, name=name) for name in EDP},
    "tp-group-norm": group_norm,
    "tp-taylor": taylor,
    "tp-taylor-blocks": partial(taylor, blocks=True),
    "svd": svd,
    "edp-lambda": edp_lambda,
    "slimming": slimming,
}
# what a layer puts out counts where they compare
WEIGHED = ("edp-budget", "edp-kernels", "edp-channels")
ALIGNED = (*WEIGHED, "edp-pairs", "tp-taylor-blocks")  # in blocks of the trial's
GRADUAL = (*ALIGNED, "tp-taylor", "edp-ranks")  # on the trial's schedule
TORCH_PRUNING = ("tp-group-norm", "tp-taylor")
DESCRIPTIONS = {
    "dense": "the plain network",
    "thin": "every group of coupled channels of the plain network at the same share of its width, from scratch",
    "edp-budget": "channels, in blocks, kernels and residual branches: the default, "
    "Taylor importance, on a cubic schedule",
    "tp-group-norm": "Torch-Pruning, group norm with sparse learning for half of the steps, pruned once, trained on",
    "tp-taylor": "Torch-Pruning, group Taylor importance, pruned in steps on the same schedule as `edp-budget`",
    "tp-taylor-blocks": "tp-taylor that leaves the multiples of channels that `edp-budget` does",
    "svd": "trained for half of the steps, every layer cut by singular values, trained on",
    "edp-ranks": "edp-budget that removes ranks only",
    "edp-kernels": "edp-budget that removes channels and kernels",
    "edp-channels": "edp-budget that removes channels only",
    "edp-pairs": "edp-budget that removes ranks and channels",
    "edp-lambda": "ranks and channels by fixed strengths of the group-sparse penalty: no MACs are asked for",
    "slimming": "L1 on the batch norms' scales for half of the steps, pruned once by them, trained on",
}
