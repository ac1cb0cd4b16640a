"""What a tensor holds that the forward computes from buffers and sizes alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from edp_fx.frontend.normal_form import is_impure
from edp_fx.frontend.proxies import Untraceable

DRAWN = frozenset(
    "rand randn randint randperm normal empty bernoulli multinomial poisson rand_like randn_like randint_like "
    "empty_like new_empty dropout".split()
)
"""Names of functions whose results depend on chance."""


def real_value(node: fx.Node, run: Callable[[fx.Node, Callable[[fx.Node], Any]], Any]) -> Any:
    """The real value of a node: of what is made from buffers, from constants and from sizes, which are the example's.

    Args:
        node: any node, its example in ``meta["val"]``.
        run: gives the value of one node from those of its arguments.

    Raises:
        Untraceable: the value depends on the model's input, on a parameter, or on chance.
    """
    memo: dict[fx.Node, Any] = {}

    def value_of(one: fx.Node) -> Any:
        if one not in memo:
            example = one.meta["val"]
            tensors = any(isinstance(leaf, Tensor) for leaf in tree_leaves(example))
            memo[one] = computed(one) if tensors else example
        return memo[one]

    def computed(one: fx.Node) -> Any:
        if one.op == "placeholder":
            raise Untraceable("the model's control flow depends on the values of its input")
        if getattr(one.target, "__name__", one.target) in DRAWN:
            raise Untraceable("the model's control flow depends on a random number")
        if is_impure(one) or any(is_impure(user) and user.args[:1] == (one,) for user in one.users):
            raise Untraceable("the model's control flow depends on a tensor that its forward changes in place")
        with torch.no_grad():
            value = run(one, value_of)
        if one.op == "get_attr" and isinstance(value, torch.nn.Parameter) and value.requires_grad:
            raise Untraceable("the model's control flow depends on the values of a parameter, which training changes")
        if isinstance(value, Tensor) and value.is_meta:
            raise Untraceable("the model's control flow depends on a tensor of the meta device, which has no values")
        return value

    return value_of(node)
