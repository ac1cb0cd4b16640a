"""Changing the network while it trains: fused for speed, explicit for analysis, pruned and merged at
milestones."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from edp_fx.compressor.elements import Keep
from edp_fx.inputs import normalize
from edp_fx.leaves import tensors_of
from edp_fx.passes.branches import DropBranches
from edp_fx.passes.fuse import FusePairs, UnfusePairs
from edp_fx.passes.merge import Chooser, MergePairs
from edp_fx.passes.prune import prune
from edp_fx.passes.separate import SeparateConvs

if TYPE_CHECKING:
    from edp_fx.channels import ChannelGraph
    from edp_fx.channels.kernels import Kernels
    from edp_fx.channels.residuals import Branch

KeptIndices = dict[str, dict[int, NDArray[np.int64]]]


def explicit(gm: fx.GraphModule) -> fx.Graph:
    """Every pair as its two layers: the form that the analysis and the passes read; also ``gm.graph`` from
    now on."""
    return UnfusePairs()(gm).graph_module.graph


def fuse(gm: fx.GraphModule) -> fx.GraphModule:
    """Every pair as one layer, the form in which it trains. The explicit graph stays as it was, node names
    and all."""
    gm.graph = copy.deepcopy(gm.graph)
    return FusePairs()(gm).graph_module


def reshape(
    gm: fx.GraphModule,
    form: fx.Graph,
    graph: ChannelGraph,
    keep: Keep,
    keep_pair: Chooser | None,
    separated: Sequence[Kernels],
    dropped: Sequence[Branch],
) -> KeptIndices:
    """Prune ``gm`` to ``keep`` in place; merge the pairs that ``keep_pair`` does not want where it is given.

    Args:
        gm: the network, in any form; it ends in the explicit one.
        form: its explicit graph, as it was analysed; changed and taken over.
        graph: the analysis.
        keep: the elements of its groups that stay.
        keep_pair: (name, pair) -> whether a pruned pair is to stay two layers.
        separated: layers whose kernels go, all but one per input channel.
        dropped: branches that go.

    Returns:
        Per parameter and axis, the indices that stayed.
    """
    gm.graph = form
    pruned = prune(gm, graph, keep)
    reports = [pruned.report, DropBranches(dropped)(gm).report, SeparateConvs(separated)(gm).report]
    if keep_pair is not None:
        reports.append(MergePairs(keep_pair)(gm).report)
    gm.meta["edp_fx.reports"] = [*gm.meta.get("edp_fx.reports", []), *reports]
    kept: KeptIndices = pruned.report.facts["kept"]
    return kept


class Modes:
    """Remembers which submodules were in training mode, by name."""

    def __init__(self, model: nn.Module) -> None:
        self.training = {name: module.training for name, module in model.named_modules()}

    def restore(self, model: nn.Module) -> None:
        """Set every submodule that still exists, and new ones like the root."""
        root = self.training.get("", True)
        for name, module in model.named_modules():
            module.training = self.training.get(name, root)


@contextmanager
def whole_float32() -> Iterator[None]:
    """Within it a GPU computes float32 as such; by themselves its convolutions, and where the user allows it its matrix
    products, round to TF32, layers of other widths by other kernels."""
    backends = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


@torch.no_grad()
def outputs(model: nn.Module, inputs: Sequence[Any]) -> list[Tensor]:
    """All tensors the model gives for ``inputs`` in evaluation mode, in whole float32; the mode is put back."""
    modes = Modes(model)
    model.eval()
    try:
        with whole_float32():
            result = model(*normalize(inputs, model))
    finally:
        modes.restore(model)
    return [leaf.detach().float() for leaf in tensors_of(result)]


def relative_difference(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Largest |a - b| over all outputs, relative to the largest |a| of its output."""
    worst = 0.0
    for a, b in zip(before, after, strict=True):
        scale = float(a.abs().max()) or 1.0
        worst = max(worst, float((a - b).abs().max()) / scale)
    return worst
