"""``insert`` and ``analyze`` as they are to be used: what they say is checked on the network before they say it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from torch import fx, nn

from edp_fx.channels import ChannelGraph
from edp_fx.channels import analyze as analyze_unproved
from edp_fx.errors import PassError
from edp_fx.inputs import require_graph
from edp_fx.passes.base import PassReport
from edp_fx.passes.insert import InsertPairs
from edp_fx.validation.proof import prove
from edp_fx.validation.samples import placeholders
from edp_fx.validation.validator import Validator


def insert(gm: fx.GraphModule, *, check: bool = True, **options: Any) -> fx.GraphModule:
    """Insert compressed-aware pairs into a traced graph; the options are the fields of
    :class:`~edp_fx.passes.insert.InsertPairs`.

    The network's outputs are compared before and after, on random inputs of the shapes it was traced on; a pair that
    changes them is undone. The report is appended to ``gm.meta["edp_fx.reports"]``.

    Args:
        gm: changed in place.
        check: compare; without it a fault of ours would go unseen.
        options: of the pass.

    Raises:
        PassError: an unknown option or value.
    """
    require_graph(gm, "insert")
    known = [name for name in InsertPairs.__dataclass_fields__ if name not in ("name", "preserves", "leave")]
    for option in options:
        if option not in known:
            raise PassError(f"insert: unknown option {option!r}; choose from {', '.join(known)}")
    for option in ("layers", "exclude", "types"):
        if isinstance(options.get(option), str):
            options[option] = (options[option],)
    one = InsertPairs(**options)
    one.requires(gm)
    if one.rank is None and one.energy is None:
        report = _checked(gm, one, check)
    else:  # another function is asked for; that of the full rank tells whether all is in its place
        full = _checked(copy.deepcopy(gm), replace(one, rank=None, energy=None), check)
        report = replace(one, leave=full.facts.get("undone", {}))(gm).report
    gm.meta.setdefault("edp_fx.reports", []).append(report)
    return gm


def _checked(gm: fx.GraphModule, one: InsertPairs, check: bool) -> PassReport:
    return Validator(gm, placeholders(gm), whatever=True, small=True, check=check).run(one)


def analyze(model: nn.Module, example_inputs: Any, heads: str = "dims", check: bool = True) -> ChannelGraph:
    """Find which channels of ``model`` are tied together, and which cannot be removed and why; prove it.

    Random channels of all groups at once are removed from a copy, whose outputs must be those of the whole network with
    the same channels masked. Groups where they are not are frozen and say so. What could not be tried is in
    ``.unproved``.

    Args:
        model: a traced graph, or any module (it is traced first). It is not changed.
        example_inputs: a tensor or a tuple; only shapes and dtypes are read.
        heads: attention heads lose ``"dims"`` (the same places in every head), go as a ``"whole"``, or ``"both"``
            (two kinds of groups over the same parameters).
        check: prove it, by five runs on small images where the network takes such.

    Raises:
        AnalysisError: the graph does not run on such inputs (names the node), or ``heads`` is unknown.
        TraceError: the module cannot be traced.
    """
    graph = analyze_unproved(model, example_inputs, heads)
    return prove(graph) if check else graph
