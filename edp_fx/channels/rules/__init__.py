"""What each ATen operation does to channel labels.

Four families: movement (indices change place), pointwise (broadcast-aware union), compute (a contraction, a
normalisation, a reduction) and everything else, which freezes all it touches: unknown is safe.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from edp_fx.channels.labels import tensors
from edp_fx.channels.rules.movement import MOVEMENT, expand
from edp_fx.channels.rules.normalise import NORMALISE
from edp_fx.channels.rules.pointwise import POINTWISE_EXTRA, pointwise
from edp_fx.channels.rules.product import PRODUCT
from edp_fx.channels.rules.spatial import SPATIAL

if TYPE_CHECKING:
    from edp_fx.channels.sweep import Sweep

Rule = Callable[..., None]
RULES: dict[Any, Rule] = {**MOVEMENT, **NORMALISE, **PRODUCT, **SPATIAL, **POINTWISE_EXTRA}


@dataclass(frozen=True)
class Operation:
    """What is known of an ATen operation, whatever it is given.

    ``pointwise``: it gives one tensor, each number of which comes from the numbers at its own place.
    ``labels_alone``: it makes no labels where its operands have none.
    """

    name: str
    rule: Rule | None
    pointwise: bool
    mutable: bool
    labels_alone: bool


@functools.cache
def operation(func: Any) -> Operation:
    """The rule of an operation, and what its schema says of it; torch's own tag tells what else is pointwise."""
    rule = RULES.get(func.overloadpacket)
    if rule is None and torch.Tag.pointwise in func.tags:
        rule = pointwise
    alike = rule is pointwise and len(func._schema.returns) == 1
    return Operation(str(func), rule, alike, func._schema.is_mutable, rule is not expand)


def apply_rule(sweep: Sweep, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Label the outputs of ``func(*args, **kwargs)`` and write down what it ties and freezes."""
    known = operation(func)
    labelled = [one for one in tensors(*args, *kwargs.values()) if sweep.labels(one)]
    if known.rule is not None:
        if labelled or not known.labels_alone:
            known.rule(sweep, func, args, kwargs, out)
    elif labelled:
        sweep.ledger.unknown_ops.setdefault(known.name, sweep.where)
        for tensor in labelled:
            for factor in sweep.labels(tensor):
                sweep.freeze(factor, f"{func} has no rule")
