"""Casting a copy of the model before the export: the precision of a strongly typed engine is the model's
own.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn

from edp_fx.errors import EdpError, LoweringError
from edp_fx.frontend import trace
from edp_fx.frontend.unfold import unfold
from edp_fx.inputs import copied
from edp_fx.passes.fuse import UnfusePairs

PRECISIONS = ("fp32", "fp16", "bf16", "int8")

# int8 weights and activations come from Q/DQ nodes in an otherwise float32 graph.
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}

_METHODS = {"half": torch.float16, "bfloat16": torch.bfloat16, "float": torch.float32, "double": torch.float64}

# Layers of these types hold a kernel whose rows a following norm's scale can be multiplied into. The
# `forward` must be the type's own: a subclass may compute its weight (weight standardisation).
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def dtype_of(precision: str) -> torch.dtype:
    """The floating type the graph computes in; LoweringError for an unknown precision."""
    if precision not in DTYPES:
        raise LoweringError(f"unknown precision {precision!r}: one of {', '.join(PRECISIONS)}")
    return DTYPES[precision]


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in eval mode on the CPU, its fused pairs two layers again (computing W = C·B at every run is
    for training).
    """
    plain = copied(model).cpu().eval()
    if isinstance(plain, fx.GraphModule):
        UnfusePairs()(plain)
    return plain


def prepare(model: nn.Module, precision: str, inputs: tuple[Tensor, ...] = ()) -> nn.Module:
    """:func:`plain_copy` in the precision's floating type, whatever type the model has.

    For half types the batch norms' scales are moved into the convolutions in float32 first: rounded one by
    one, weight, variance and scale would lose about a bit and a half more, and a variance above 65504 is
    infinite in half. A plain module is traced for that on ``inputs`` (of the model's own type), if given; where no
    graph can be had it stays as it is. Raises LoweringError for an unknown precision.
    """
    dtype = dtype_of(precision)
    ready = plain_copy(model)
    own = _floating_type(ready)
    half = dtype in (torch.float16, torch.bfloat16)
    if not isinstance(ready, fx.GraphModule) and inputs and (half or own != torch.float32):
        with contextlib.suppress(EdpError):
            ready = trace(ready, inputs).eval()
    ready = ready.float()
    if isinstance(ready, fx.GraphModule) and half:
        with contextlib.suppress(EdpError):  # the norm behind a layer that pads, say, can be absorbed as well
            ready = unfold(ready, cast_inputs(inputs, torch.float32) if inputs else None, _computes_around)
        absorb_norms(ready)
    if isinstance(ready, fx.GraphModule) and own not in (torch.float32, dtype):
        _retype(ready, own, dtype)
    return ready.to(dtype)


def _floating_type(model: nn.Module) -> torch.dtype:
    """The type of the model's first floating tensor: that in which it computes."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return next((one.dtype for one in tensors if one.is_floating_point()), torch.float32)


def _retype(gm: fx.GraphModule, old: torch.dtype, new: torch.dtype) -> None:
    """Write ``new`` where a graph that was traced in ``old`` names that type, as an argument or by a method."""

    def changed(value: Any) -> Any:
        return new if value is old else value

    for node in gm.graph.nodes:
        if node.op == "call_method" and _METHODS.get(str(node.target)) is old:
            node.target, node.args = "to", (*node.args[:1], new)
        else:
            node.args = fx.node.map_aggregate(node.args, changed)
            node.kwargs = fx.node.map_aggregate(node.kwargs, changed)
    gm.recompile()


def cast_inputs(inputs: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Floating inputs in ``dtype``; others as they are."""
    return tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)


def absorb_norms(gm: fx.GraphModule) -> list[str]:
    """Move the scale and mean of every batch norm that alone follows a convolution into it, in place; eval
    only.

    The norm's module stays (a subclass may end in an activation): its variance and scale become 1, its mean
    and eps 0. Returns the names of the norms absorbed. The function of the graph does not change.
    """
    done = []
    used = Counter(str(node.target) for node in gm.graph.nodes if node.op == "call_module")
    for node in gm.graph.nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        norm, layer = gm.get_submodule(str(node.target)), gm.get_submodule(str(source.target))
        once = used[str(node.target)] == used[str(source.target)] == 1
        if once and _plain_norm(norm) and _plain_layer(layer):
            _absorb(layer, norm)
            done.append(str(node.target))
    return done


def _plain_norm(norm: nn.Module) -> bool:
    return (
        isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))
        and isinstance(norm.running_var, Tensor)
        and all(isinstance(norm._parameters.get(name), nn.Parameter) for name in ("weight", "bias"))
    )


def _plain_layer(layer: nn.Module) -> bool:
    return (
        any(isinstance(layer, kind) and type(layer).forward is kind.forward for kind in _LAYERS)
        and "weight" in layer._parameters
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
    )


def _computes_around(kind: type[nn.Module]) -> bool:
    """Whether a class of convolutions has a forward of its own."""
    return issubclass(kind, _LAYERS) and not any(kind.forward is one.forward for one in _LAYERS)


def _absorb(layer: Any, norm: Any) -> None:
    with torch.no_grad():
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        weight = layer.weight.double()
        if layer.transposed:  # (in, out / groups, *kernel): a row of a group is an output channel
            grouped = weight.unflatten(0, (layer.groups, -1))
            rows = scale.view(layer.groups, 1, -1, *[1] * (weight.dim() - 2))
            layer.weight.copy_((grouped * rows).flatten(0, 1))
        else:
            layer.weight.copy_(weight * scale.view(-1, *[1] * (weight.dim() - 1)))
        mean = norm.running_mean.double()
        if layer.bias is not None:
            mean = mean - layer.bias.double()
            layer.bias.zero_()
        norm.bias.copy_(norm.bias.double() - mean * scale)
        norm.running_mean.zero_()
        norm.running_var.fill_(1.0)
        norm.weight.fill_(1.0)
        norm.eps = 0.0  # in half an exporter that folds norms would round every weight again by sqrt(1 + eps)
