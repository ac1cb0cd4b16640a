"""Running what does not run without data (it asks for a number) for the shapes of what it gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import _disable_current_modes

from edp_fx.frontend.running import run_node
from edp_fx.leaves import map_tensors


def run_on_random(root: nn.Module, node: fx.Node, value_of: Callable[[fx.Node], Any], device: torch.device) -> Any:
    """The value of a node where random numbers stand in the places of its arguments' tensors, outside of every mode."""

    def filled(like: Tensor) -> Tensor:
        if like.is_floating_point():
            return torch.rand(like.shape, device=device).to(like.dtype)
        return torch.zeros(like.shape, dtype=like.dtype, device=device)

    with torch.no_grad(), torch.random.fork_rng(devices=[]), _disable_current_modes(), torch._C.DisableTorchFunction():
        return run_node(root, node, lambda one: map_tensors(filled, value_of(one)))
