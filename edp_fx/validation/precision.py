"""Networks and inputs in float64, and whether that is what they compute in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from edp_fx.inputs import eval_mode
from edp_fx.leaves import tensors_of


def in_double(value: Any) -> Any:
    """A module (in place) or a tuple of tensors with every floating point number in float64."""
    if isinstance(value, nn.Module):
        return value.double()
    return tuple(one.double() if one.is_floating_point() else one for one in value)


def in_single(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Every floating point tensor in float32."""
    return tuple(one.float() if one.is_floating_point() else one for one in inputs)


class _Spy(TorchDispatchMode):
    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen |= any(one.dtype is torch.float32 for one in tensors_of(result))
        return result


def computes_in_single(model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether a float64 network casts to float32 somewhere inside."""
    with eval_mode(model), torch.no_grad(), torch.random.fork_rng(devices=[]), _Spy() as spy:
        model(*inputs)
    return spy.seen
