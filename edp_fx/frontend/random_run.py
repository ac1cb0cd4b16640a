"""Running what does not run without data (it asks for a number) for the shapes of what it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import _disable_current_modes

from edp_fx.frontend.running import run_node, submodule
from edp_fx.leaves import map_tensors


@contextmanager
def own_buffers(module: nn.Module) -> Iterator[None]:
    """A module computes with copies of its buffers: what it counts in them while it runs is forgotten."""
    modules = list(module.modules())
    tables = [dict(one._buffers) for one in modules]
    try:
        for one, table in zip(modules, tables):
            one._buffers.update({name: buffer.clone() for name, buffer in table.items() if buffer is not None})
        yield
    finally:
        for one, table in zip(modules, tables):
            one._buffers.clear()
            one._buffers.update(table)


def run_on_random(root: nn.Module, node: fx.Node, value_of: Callable[[fx.Node], Any], device: torch.device) -> Any:
    """The value of a node where random numbers stand in the places of its arguments' tensors, outside of every mode."""

    def filled(like: Tensor) -> Tensor:
        if like.is_floating_point():
            return torch.rand(like.shape, device=device).to(like.dtype)
        return torch.zeros(like.shape, dtype=like.dtype, device=device)

    module = submodule(root, str(node.target)) if node.op == "call_module" else nn.Module()
    outside = (torch.no_grad(), torch.random.fork_rng(devices=[]), _disable_current_modes())
    with outside[0], outside[1], outside[2], torch._C.DisableTorchFunction(), own_buffers(module):
        return run_node(root, node, lambda one: map_tensors(filled, value_of(one)))
