"""What each ATen operation does to channel labels, and to the sizes written into a graph that calls it.

Four families: movement (indices change place), pointwise (broadcast-aware union), compute (a contraction, a
normalisation, a reduction) and everything else, which freezes all it touches: unknown is safe. A rule stands in the
file of its family, under a decorator that names its operations and what repairs their literal sizes;
:func:`register_rule` adds one from outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edp_fx.channels.rules.movement import cat, pad, pixel_shuffle, repeat, roll, same_op, stack
from edp_fx.channels.rules.normalise import batch_norm, cumulative, group_norm, layer_norm, reduction, softmax, total
from edp_fx.channels.rules.pointwise import pointwise
from edp_fx.channels.rules.product import attention, convolution, mm
from edp_fx.channels.rules.registry import REGISTRY, Entry, Operation, register_rule
from edp_fx.channels.rules.reshape import expand, permute, view
from edp_fx.channels.rules.selection import along_axis, embedding, index, index_select
from edp_fx.channels.rules.spatial import spatial
from edp_fx.errors import one_line

if TYPE_CHECKING:
    from edp_fx.channels.sweep import Sweep

__all__ = [
    "along_axis",
    "apply_rule",
    "attention",
    "batch_norm",
    "cat",
    "convolution",
    "cumulative",
    "embedding",
    "expand",
    "group_norm",
    "index",
    "index_select",
    "layer_norm",
    "mm",
    "operation",
    "pad",
    "permute",
    "pixel_shuffle",
    "pointwise",
    "reduction",
    "register_rule",
    "repeat",
    "roll",
    "same_op",
    "softmax",
    "spatial",
    "stack",
    "total",
    "view",
]


def operation(func: Any) -> Operation:
    """The rule of an operation, and what its schema says of it; torch's own tag tells what else is pointwise."""
    known = REGISTRY.met.get(func)
    if known is None:
        entry = REGISTRY.rules.get(func.overloadpacket)
        if entry is None and torch.Tag.pointwise in func.tags:
            entry = Entry(pointwise)
        rule = entry.rule if entry is not None else None
        alike = rule is pointwise and len(func._schema.returns) == 1
        schema = func._schema
        alias = not schema.is_mutable and any(one.alias_info is not None for one in schema.returns)
        births = entry is not None and entry.births
        known = Operation(str(func), rule, births, alike, schema.is_mutable, alias)
        REGISTRY.met[func] = known
    return known


def apply_rule(
    sweep: Sweep,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    out: Any,
    operands: Sequence[Tensor],
    results: Sequence[Tensor],
) -> None:
    """Label ``out``, what ``func(*args, **kwargs)`` gave, and write down what it ties and freezes.

    ``operands`` and ``results`` are the tensors among the arguments and in ``out``.
    """
    known = operation(func)
    labelled = [one for one in operands if sweep.labels(one)]
    reason = "has no rule"
    if known.rule is not None and (labelled or known.births):
        try:
            known.rule(sweep, func, args, kwargs, out)
            return
        except Exception as error:  # whatever a rule did not think of: unknown is safe
            reason = f"is used in a way that its rule does not know: {one_line(error)}"
    if labelled:
        sweep.ledger.unknown_ops.setdefault(known.name, sweep.where)
        for tensor in [*labelled, *results]:
            for factor in sweep.labels(tensor):
                sweep.freeze(factor, f"{func} {reason}")
