"""The methods by name: each takes a trial and returns the trained network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from benchmarks.compression.methods.edp import ALIGN, edp
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
    "tp-taylor-blocks": partial(taylor, round_to=ALIGN),
    "svd": svd,
    "edp-ranks": partial(edp, kinds=("rank",), align=1),
    "edp-kernels": partial(edp, kinds=("channel", "kernel")),
    "edp-taps": partial(edp, kinds=("channel", "kernel", "branch", "tap")),
    "edp-channels": partial(edp, kinds=("channel",)),
    "edp-lambda": partial(edp, kinds=("rank", "channel"), policy="lambda", align=1),
    "edp-pairs": partial(edp, kinds=("rank", "channel")),
    "slimming": slimming,
}
# what a layer puts out counts where they compare
WEIGHED = ("edp-budget", "edp-taps", "edp-kernels", "edp-channels")
ALIGNED = (*WEIGHED, "edp-pairs", "tp-taylor-blocks")  # in blocks of ALIGN
GRADUAL = (*ALIGNED, "tp-taylor", "edp-ranks")  # on the trial's schedule
TORCH_PRUNING = ("tp-group-norm", "tp-taylor")
DESCRIPTIONS = {
    "dense": "the plain network",
    "thin": "every group of coupled channels of the plain network at the same share of its width, from scratch",
    "edp-budget": f"channels, in blocks of {ALIGN}, kernels and residual branches (`--kinds channel,kernel,branch`), "
    "Taylor importance, on a cubic schedule",
    "tp-group-norm": "Torch-Pruning, group norm with sparse learning for half of the steps, pruned once, trained on",
    "tp-taylor": "Torch-Pruning, group Taylor importance, pruned in steps on the same schedule as `edp-budget`",
    "tp-taylor-blocks": f"tp-taylor that leaves multiples of {ALIGN} channels",
    "svd": "trained for half of the steps, every layer cut by singular values, trained on",
    "edp-ranks": "edp-budget that removes ranks only",
    "edp-kernels": "edp-budget that removes channels and kernels",
    "edp-taps": "edp-budget that removes the outermost taps of kernels, too (`--kinds channel,kernel,branch,tap`)",
    "edp-channels": "edp-budget that removes channels only",
    "edp-pairs": "edp-budget that removes ranks and channels",
    "edp-lambda": "ranks and channels by fixed strengths of the group-sparse penalty: no MACs are asked for",
    "slimming": "L1 on the batch norms' scales for half of the steps, pruned once by them, trained on",
}
