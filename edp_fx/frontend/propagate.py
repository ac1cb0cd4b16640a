"""Shapes and dtypes of every node, from a run on fake tensors: no memory, no arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from edp_fx.errors import PassError
from edp_fx.inputs import eval_mode, normalize


def fake_mode() -> FakeTensorMode:
    """A mode in which real parameters may take part: they become fake when an op meets them."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def to_fake(mode: FakeTensorMode, tensor: Tensor) -> Tensor:
    """``tensor`` as a fake of ``mode``; fakes of another mode are made anew."""
    if isinstance(tensor, FakeTensor):
        if tensor.fake_mode is mode:
            return tensor
        with mode:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    if tensor.device.type == "meta":
        with mode:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return mode.from_tensor(tensor.detach())


def run_node(gm: torch.nn.Module, node: fx.Node) -> Any:
    """The value of one node, computed from the values its arguments carry in ``meta["val"]``."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    if node.op == "call_module":
        return gm.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.op == "get_attr":
        value: Any = gm
        for name in str(node.target).split("."):
            value = getattr(value, name)
        return value
    if node.op == "output":
        return args[0]
    return node.target(*args, **kwargs)  # type: ignore[operator]


def propagate(gm: fx.GraphModule, example_inputs: Any) -> None:
    """Fill ``node.meta["val"]`` of every node with fake tensors and plain values.

    Layers are run in eval mode, so a batch of one passes batch norm and no statistics move; ``gm`` is unchanged
    but for the metadata.

    Args:
        gm: the graph.
        example_inputs: a tensor or a tuple of tensors (real, meta or fake), one a placeholder.

    Raises:
        PassError: naming the node whose operation does not fit its arguments' shapes.
    """
    inputs = iter(normalize(example_inputs))
    mode = fake_mode()
    with eval_mode(gm), torch.no_grad():
        for node in gm.graph.nodes:
            if node.op == "placeholder":
                given = next(inputs, None)
                if given is None and not node.args:
                    raise PassError(f"propagate: no example input for placeholder {node.name!r}")
                node.meta["val"] = node.args[0] if given is None else to_fake(mode, given)
                continue
            try:
                with mode:
                    value = run_node(gm, node)
                if node.op == "get_attr" and isinstance(value, Tensor):
                    value = to_fake(mode, value)
            except Exception as error:
                reason = (str(error).strip().splitlines() or [""])[0]
                raise PassError(
                    f"propagate: node {node.name!r} ({node.op} {node.target}) fails on the shapes of its "
                    f"arguments: {type(error).__name__}: {reason}"
                ) from error
            node.meta["val"] = value
