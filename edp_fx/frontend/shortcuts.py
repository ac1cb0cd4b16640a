"""Shapes of results that need no run: without data, torch works many of them out in dozens of Python calls."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

META = torch.device("meta")


def like(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """``torch.empty_like`` on the meta device, where torch works out the strides in Python."""
    strides = _like_strides(tensor.shape, tensor.stride())
    return torch.empty_strided(tensor.shape, strides, dtype=dtype or tensor.dtype, device=META)


@functools.lru_cache(4096)
def _like_strides(shape: torch.Size, strides: tuple[int, ...]) -> tuple[int, ...]:
    return torch.empty_like(torch.empty_strided(shape, strides, device=META)).stride()


def convolved(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor | None:
    """The result of a plain convolution of contiguous tensors; None for any other, and where torch would refuse.

    The size of its axes is that of ``torch.nn.Conv2d``'s documentation.
    """
    shape, kernel = input.shape, weight.shape
    plain = (
        len(shape) == len(kernel) == 2 + len(stride) == 2 + len(padding) == 2 + len(dilation)
        and shape[1] == kernel[1] * groups
        and kernel[0] % groups == 0
        and input.dtype == weight.dtype
        and (bias is None or bias.shape == kernel[:1])
        and 0 not in shape
        and input.is_contiguous()
        and weight.is_contiguous()
    )
    if not plain:
        return None
    sizes = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip(shape[2:], kernel[2:], stride, padding, dilation)
    ]
    if min(sizes) < 1:
        return None
    return torch.empty((shape[0], kernel[0], *sizes), dtype=input.dtype, device=META)


def _conv(function: Callable[..., Tensor], axes: int) -> Callable[..., Tensor]:
    """A functional convolution over ``axes`` spatial axes."""

    def several(value: Any) -> Any:
        return (value,) * axes if isinstance(value, int) else value

    def shape_of(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        found = None
        if not isinstance(padding, str):
            found = convolved(input, weight, bias, several(stride), several(padding), several(dilation), groups)
        return function(input, weight, bias, stride, padding, dilation, groups) if found is None else found

    return shape_of


def pointwise_form(operands: Sequence[Tensor]) -> Tensor | None:
    """The operand that the result of a pointwise operation is shaped and strided like; None where it is none of them.

    It is the first one where all have its shape and strides, or where all are contiguous and stretch to its shape.
    """
    if not operands:
        return None
    largest = max(operands, key=Tensor.numel)
    shape, strides = largest.shape, largest.stride()
    for one in operands:
        if one is largest or (one.shape == shape and one.stride() == strides):
            continue
        axes = zip(reversed(one.shape), reversed(shape))
        if one.ndim > len(shape) or any(size not in (1, full) for size, full in axes):
            return None
        if not (one.is_contiguous() and largest.is_contiguous()):
            return None
    return largest


def _arithmetic(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Sums and products of real tensors of one type, and of one with a number."""

    def shape_of(input: Any, other: Any, **kwargs: Any) -> Tensor:
        operands = [one for one in (input, other) if isinstance(one, Tensor)]
        plain = {type(one) for one in (input, other)} <= {Tensor, nn.Parameter, int, float}
        if plain and not kwargs and len({one.dtype for one in operands}) == 1 and operands[0].is_floating_point():
            form = pointwise_form(operands)
            if form is not None:
                return like(form)
        return function(input, other, **kwargs)

    return shape_of


def _averaged(input: Tensor, dim: Any, keepdim: bool) -> Tensor | None:
    """The mean of a contiguous real tensor over some of its axes; None for any other, and where torch would refuse."""
    if not (input.is_contiguous() and input.is_floating_point()):
        return None
    if dim is None or dim == ():
        dim = range(input.ndim)
    axes = [dim] if isinstance(dim, int) else list(dim)
    if not all(type(axis) is int and -input.ndim <= axis < input.ndim for axis in axes):
        return None
    gone = {axis % input.ndim for axis in axes}
    if len(gone) < len(axes):
        return None
    sizes = [1 if axis in gone else size for axis, size in enumerate(input.shape) if keepdim or axis not in gone]
    return torch.empty(sizes, dtype=input.dtype, device=META)


def _mean(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def shape_of(input: Tensor, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Tensor:
        found = None if kwargs else _averaged(input, dim, keepdim)
        return function(input, dim, keepdim, **kwargs) if found is None else found

    return shape_of


def _attention(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Attention without a mask: the queries' places, the values' width."""

    def shape_of(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        fits = (
            query.ndim == key.ndim == value.ndim >= 3
            and query.shape[:-2] == key.shape[:-2] == value.shape[:-2]
            and query.shape[-1] == key.shape[-1]
            and key.shape[-2] == value.shape[-2]
            and query.dtype == key.dtype == value.dtype
        )
        if not fits or args or not kwargs.keys() <= {"dropout_p", "scale"}:
            return function(query, key, value, *args, **kwargs)
        return torch.empty((*query.shape[:-1], value.shape[-1]), dtype=query.dtype, device=META)

    return shape_of


def _interpolate(
    input: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest", **kwargs: Any
) -> Tensor:
    """Images resized to a size that is given."""
    plain = (
        input.ndim == 4
        and input.is_contiguous()
        and scale_factor is None
        and mode in ("nearest", "bilinear", "bicubic")
    )
    sizes = (size, size) if type(size) is int else tuple(size or ())
    if plain and len(sizes) == 2 and all(type(one) is int and one > 0 for one in sizes) and 0 not in input.shape:
        return torch.empty((*input.shape[:2], *sizes), dtype=input.dtype, device=META)
    return F.interpolate(input, size, scale_factor, mode, **kwargs)


def contiguous(tensor: Tensor) -> Tensor:
    """A tensor of the same shape and type without gaps."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=META)


def _norm(axis: int, form: Callable[[Tensor], Tensor] = like) -> Callable[..., Tensor]:
    """A norm's output has its input's shape; per-channel arguments must fit ``axis``."""

    def shape_of(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        for one in (*args, *kwargs.values()):
            if isinstance(one, Tensor) and one.shape[-1] != input.shape[axis]:
                raise RuntimeError(f"norm of {input.shape[axis]} channels given {one.shape[-1]} values")
        return form(input)

    return shape_of


def _unary(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return like(input)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if input.shape[-1] != weight.shape[1] or (bias is not None and bias.shape[0] != weight.shape[0]):
        raise RuntimeError(f"linear layer of weight {tuple(weight.shape)} given input {tuple(input.shape)}")
    return torch.empty((*input.shape[:-1], weight.shape[0]), dtype=input.dtype, device=META)


def _recurrent(function: Callable[..., Any], gates: int) -> Callable[..., Any]:
    """A recurrent layer on a padded batch: torch goes step by step through the sequence, the shapes need none of it.

    ``gates`` is the number of matrices stacked in a weight, as in ``torch.nn.RNNBase``.
    """

    def shape_of(input: Tensor, state: Any, weights: Any, *rest: Any) -> Any:
        states = state if isinstance(state, tuple) else (state,)
        padded = isinstance(input, Tensor) and all(isinstance(one, Tensor) for one in states) and len(rest) == 6
        if not padded or not _recurrent_fits(input, states, weights, gates, *rest):
            return function(input, state, weights, *rest)
        width = states[0].shape[-1] * (2 if rest[4] else 1)
        steps = input.transpose(0, 1) if rest[5] else input
        output = torch.empty((*steps.shape[:2], width), dtype=input.dtype, device=META)
        return (output.transpose(0, 1) if rest[5] else output, *map(contiguous, states))

    return shape_of


def _recurrent_fits(
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    gates: int,
    biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    both_ways: bool,
    batch_first: bool,
) -> bool:
    """Whether the sizes are those that ``torch.nn.RNNBase`` documents."""
    ways, hidden, cell = 2 if both_ways else 1, states[0].shape[-1], states[-1].shape[-1]
    projected = hidden != cell
    batch = input.shape[0 if batch_first else 1]
    sizes: list[tuple[int, ...]] = []
    for layer in range(layers):
        wide = hidden * ways if layer else input.shape[-1]
        one = [(gates * cell, wide), (gates * cell, hidden), *[(gates * cell,)] * (2 * biases)]
        sizes += (one + [(hidden, cell)] * projected) * ways
    return (
        input.ndim == 3
        and all(one.shape[:-1] == (layers * ways, batch) and one.dtype == input.dtype for one in states)
        and [tuple(one.shape) for one in weights] == sizes
    )


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.conv1d: _conv(F.conv1d, 1),
    F.conv2d: _conv(F.conv2d, 2),
    F.conv3d: _conv(F.conv3d, 3),
    F.batch_norm: _norm(1),
    F.instance_norm: _norm(1),
    F.group_norm: _norm(1),
    F.layer_norm: _norm(-1, contiguous),
    F.linear: _linear,
    F.interpolate: _interpolate,
    F.scaled_dot_product_attention: _attention(F.scaled_dot_product_attention),
    torch.lstm: _recurrent(torch.lstm, 4),
    torch.gru: _recurrent(torch.gru, 3),
    torch.rnn_tanh: _recurrent(torch.rnn_tanh, 1),
    torch.rnn_relu: _recurrent(torch.rnn_relu, 1),
    torch.mean: _mean(torch.mean),
    Tensor.mean: _mean(Tensor.mean),
    **{
        one: _arithmetic(one)
        for one in (torch.add, torch.sub, torch.mul, torch.div, Tensor.add, Tensor.sub, Tensor.mul, Tensor.div)
    },
    **dict.fromkeys(
        (F.relu, F.relu6, F.gelu, F.silu, F.sigmoid, F.tanh, F.hardswish, F.hardsigmoid, F.hardtanh, F.mish,
         F.elu, F.leaky_relu, F.softplus, F.dropout, torch.relu, torch.sigmoid, torch.tanh, Tensor.sigmoid,
         Tensor.tanh, Tensor.relu),
        _unary,
    ),
}  # fmt: skip
"""What a torch function gives on meta tensors, without running it."""


def _with_statistics(form: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    def shape_of(input: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        statistics = torch.empty(0, dtype=input.dtype, device=META)
        return form(input), statistics, statistics

    return shape_of


def _addmm(bias: Tensor, left: Tensor, right: Tensor, **options: Any) -> Tensor:
    plain = left.shape[1] == right.shape[0] and bias.shape == right.shape[1:] and left.dtype == right.dtype
    if options or not plain:
        return torch.ops.aten.addmm(bias, left, right, **options)
    return torch.empty((left.shape[0], right.shape[1]), dtype=left.dtype, device=META)


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    turned: bool,
    extra: Any,
    groups: int,
) -> Tensor:
    found = None if turned else convolved(input, weight, bias, stride, padding, dilation, groups)
    if found is None:
        return torch.ops.aten.convolution(input, weight, bias, stride, padding, dilation, turned, extra, groups)
    return found


OPERATIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.mean: _mean(torch.ops.aten.mean),
    torch.ops.aten.convolution: _convolution,
    torch.ops.aten.addmm: _addmm,
    torch.ops.aten.native_batch_norm: _with_statistics(like),
    torch.ops.aten._native_batch_norm_legit_no_training: _with_statistics(like),
    torch.ops.aten.cudnn_batch_norm: _with_statistics(like),
    torch.ops.aten.native_layer_norm: _with_statistics(contiguous),
}
"""The same for ATen operations; the statistics that norms also give are left out."""
