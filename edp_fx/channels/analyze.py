"""``analyze``: the entry point of the channel-dependency analysis."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import fx, nn

from edp_fx.channels.analysis import Analysis
from edp_fx.channels.graph import ChannelGraph
from edp_fx.channels.grouping import find_groups
from edp_fx.channels.groups import Group
from edp_fx.channels.interpreter import run_sweep
from edp_fx.channels.leaves import freeze_opaque_leaves
from edp_fx.channels.views import resolve
from edp_fx.errors import AnalysisError

POLICIES = ("dims", "whole", "both")


def analyze(model: nn.Module, example_inputs: Any, heads: str = "dims") -> ChannelGraph:
    """Find which channels of ``model`` are tied together, and which cannot be removed and why.

    Args:
        model: a traced graph, or any module (it is traced first). It is not changed.
        example_inputs: a tensor or a tuple; only shapes and dtypes are read.
        heads: attention heads lose ``"dims"`` (the same places in every head), go as a ``"whole"``, or ``"both"``
            (two kinds of groups over the same parameters).

    Raises:
        AnalysisError: the graph does not run on such inputs (names the node), or ``heads`` is unknown.
        TraceError: the module cannot be traced.
    """
    if heads not in POLICIES:
        raise AnalysisError(f"heads={heads!r} is unknown: use one of {', '.join(POLICIES)}")
    from edp_fx.inputs import normalize

    inputs = normalize(example_inputs, model)
    if isinstance(model, fx.GraphModule):
        gm = model
    else:
        from edp_fx.frontend import trace

        gm = trace(model, inputs)
    wanted = ("dims",) if heads == "dims" else ("dims", "whole")
    views = []
    for policy in wanted:
        sweep = run_sweep(gm, inputs, policy)
        freeze_opaque_leaves(gm, sweep)
        views.append(resolve(sweep))
    groups = find_groups(views[0], gm)
    if heads != "dims":
        whole = find_groups(views[1], gm, index=1)
        known = {_identity(group) for group in groups}
        whole = [group if _identity(group) in known else replace(group, kind="head") for group in whole]
        if heads == "whole":
            groups, views = [replace(group, view=0) for group in whole], views[1:]
        else:
            groups = groups + [group for group in whole if group.kind == "head" and group.prunable]
        groups = [replace(group, id=k) for k, group in enumerate(groups)]
    return ChannelGraph(gm, inputs, Analysis(tuple(views), groups))


def _identity(group: Group) -> tuple[tuple[str, int, bytes], ...]:
    return tuple((member.parameter, member.axis, member.owner.tobytes()) for member in group.members)
