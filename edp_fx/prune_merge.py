"""Pruning & Merging (EDP, IEEE TNNLS 2021): remove what is exactly zero, merge what is cheaper as one layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from edp_fx.channels import ChannelGraph, analyze
from edp_fx.cost import METRICS, CostModel, Device, load_device
from edp_fx.cost.device import DEFAULT
from edp_fx.errors import BudgetError
from edp_fx.frontend import propagate
from edp_fx.inputs import copied, normalize, require_graph
from edp_fx.passes.align import align_keep
from edp_fx.passes.branches import RemoveDeadBranches
from edp_fx.passes.constants import FoldConstants
from edp_fx.passes.dead import dead_elements
from edp_fx.passes.fold import FoldBatchNorm
from edp_fx.passes.fuse import UnfusePairs
from edp_fx.passes.merge import Chooser, MergePairs, by_weights
from edp_fx.passes.prune import Prune, PruneDead
from edp_fx.validation.samples import first_samples
from edp_fx.validation.validator import Validator


def prune_and_merge(
    gm: fx.GraphModule,
    example_inputs: Any,
    *,
    cost: str | Chooser | Device = "macs",
    align: int = 1,
    allow_inexact: bool = False,
    fold: bool = False,
    check: bool = True,
) -> fx.GraphModule:
    """A small, plain network that computes what ``gm`` computes.

    Args:
        gm: a graph with pairs, explicit or fused. It is left as it is.
        example_inputs: a tensor or a tuple; the outputs for its first samples are compared before and after each step,
            and what changes them is undone and reported.
        cost: what decides whether a pair stays two layers: ``"macs"``, ``"params"``, ``"latency"`` (of one image on a
            processor under onnxruntime) or a :class:`edp_fx.Device`, or a function (pair name, pair) -> True where it
            stays.
        align: keep a multiple of so many channels and ranks: dead ones are kept to fill up.
        allow_inexact: also remove dead channels of inexact groups (a layer norm's mean changes).
        fold: also fold batch norm into the layer before it; the result is for inference only.
        check: compare.

    Returns:
        A graph module; ``meta["edp_fx.reports"]`` has what was done, with ``facts["kept"]`` per parameter and axis.

    Raises:
        AnalysisError, PassError: naming the node.
        BudgetError: the cost is unknown.
    """
    if isinstance(cost, str) and cost not in METRICS:
        raise BudgetError(f"cost {cost!r} is unknown: use one of {', '.join(METRICS)}")
    require_graph(gm, "prune_and_merge")
    inputs = normalize(example_inputs, gm)
    result = copied(gm)
    validator = Validator(result, first_samples(inputs), check=check)
    validator.run(UnfusePairs())
    propagate(result, inputs)
    reports = [validator.run(FoldConstants()), validator.run(RemoveDeadBranches())]
    graph = analyze(result, inputs)
    keep = dead_elements(result, graph, allow_inexact)
    if align > 1:
        keep = align_keep(keep, align)
    chooser = _chooser(cost, result, graph, keep)
    reports.append(validator.run(Prune(graph, keep) if allow_inexact else PruneDead(graph, keep)))
    reports.append(validator.run(MergePairs(chooser)))
    if fold:
        reports.append(validator.run(FoldBatchNorm()))
    propagate(result, inputs)
    result.meta["edp_fx.reports"] = [*gm.meta.get("edp_fx.reports", []), *reports]
    return result


def _chooser(cost: str | Chooser | Device, gm: fx.GraphModule, graph: ChannelGraph, keep: Mapping[int, Any]) -> Chooser:
    if cost in ("macs", "params"):
        return by_weights
    if isinstance(cost, str):
        cost = load_device(DEFAULT)
    return CostModel(gm, graph, "latency", cost).keep_pair(keep) if isinstance(cost, Device) else cost
