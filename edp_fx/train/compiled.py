"""Compiled steps: ``torch.compile`` over the network, anew whenever it has changed shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from edp_fx.errors import TrainingError, typed_line


class Compiled(nn.Module):
    """A network whose calls on batches of the first one's shapes are compiled; others run as they are.

    On a GPU forward and backward are captured in CUDA graphs, too (torch's mode ``reduce-overhead``), so that a small
    network's step no longer waits for Python and launches. What was compiled holds for one shape of the network: after
    a removal make another.

    Args:
        network: a graph, or DDP over it.
        graph: that graph.
        captured: CUDA graphs, where there is a GPU. They reuse the memory of gradients at the next call, so no two
            calls may add to the same ones.
    """

    def __init__(self, network: nn.Module, graph: fx.GraphModule, *, captured: bool) -> None:
        super().__init__()
        graph.recompile()  # code of its own: torch counts how often it compiles one piece of code, and gives up
        self.network = network
        self._captured = captured and torch.cuda.is_available()
        self._call = torch.compile(network, mode="reduce-overhead" if self._captured else "default", dynamic=False)
        self._shapes: list[Any] | None = None

    @property
    def no_sync(self) -> Any:
        """DDP's; None where it is not DDP that was compiled."""
        return getattr(self.network, "no_sync", None)

    def forward(self, *inputs: Tensor) -> Any:
        """The network's outputs. Raises TrainingError where torch cannot compile it."""
        shapes = [(one.shape, one.dtype) if isinstance(one, Tensor) else one for one in inputs]
        if self._shapes is None:
            self._shapes = shapes
        if shapes != self._shapes:  # the last batch of an epoch is not worth compiling for
            return self.network(*inputs)
        if self._captured:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            return self._call(*inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            cause = getattr(error, "inner_exception", error)
            raise TrainingError(
                f"torch.compile does not take the network here, leave compiled out: {typed_line(cause)}"
            ) from error
