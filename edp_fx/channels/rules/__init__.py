"""What each ATen operation does to channel labels.

Four families: movement (indices change place), pointwise (broadcast-aware union), compute (a contraction, a
normalisation, a reduction) and everything else, which freezes all it touches: unknown is safe.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from edp_fx.channels.rules.movement import MOVEMENT, expand
from edp_fx.channels.rules.normalise import NORMALISE
from edp_fx.channels.rules.pointwise import POINTWISE_EXTRA, pointwise
from edp_fx.channels.rules.product import PRODUCT
from edp_fx.channels.rules.spatial import SPATIAL

if TYPE_CHECKING:
    from edp_fx.channels.sweep import Sweep

Rule = Callable[..., None]
RULES: dict[Any, Rule] = {**MOVEMENT, **NORMALISE, **PRODUCT, **SPATIAL, **POINTWISE_EXTRA}


def rule_of(func: Any) -> Rule | None:
    """The rule of an operation; torch's own tag says what else is pointwise."""
    rule = RULES.get(func.overloadpacket)
    return pointwise if rule is None and torch.Tag.pointwise in func.tags else rule


def is_pointwise(func: Any) -> bool:
    """Whether an operation gives one tensor, each number of which comes from the numbers at its own place."""
    return rule_of(func) is pointwise and len(func._schema.returns) == 1


def apply_rule(sweep: Sweep, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Label the outputs of ``func(*args, **kwargs)`` and write down what it ties and freezes."""
    rule = rule_of(func)
    if rule is not None:
        if rule in (pointwise, expand) or _has_labels(sweep, args, kwargs):
            rule(sweep, func, args, kwargs, out)
        return
    touched = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and sweep.labels(leaf)]
    if touched:
        sweep.ledger.unknown_ops.setdefault(str(func), sweep.where)
        for tensor in touched:
            for factor in sweep.labels(tensor):
                sweep.freeze(factor, f"{func} has no rule")


def _has_labels(sweep: Sweep, args: Any, kwargs: Any) -> bool:
    return any(isinstance(leaf, Tensor) and sweep.labels(leaf) for leaf in tree_leaves((args, kwargs)))
