"""Shapes worked out without a run are those that torch gives."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from edp_fx.frontend.shortcuts import FUNCTIONS, OPERATIONS

META = torch.device("meta")
aten = torch.ops.aten
REFUSALS = (RuntimeError, TypeError, ValueError, IndexError, ZeroDivisionError)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def forms(value: Any) -> list[Any]:
    return [(t.shape, t.stride(), t.dtype) for t in tree_leaves(value) if isinstance(t, Tensor)]


def compare(shortcut: Callable[..., Any], function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Both give tensors of one form, or both refuse."""
    try:
        want = forms(function(*args, **kwargs))
    except REFUSALS:
        with pytest.raises(REFUSALS):
            shortcut(*args, **kwargs)
        return
    got = forms(shortcut(*args, **kwargs))
    assert got == want, (function, args, kwargs)


def convolutions() -> Iterator[tuple[Any, ...]]:
    inputs = [
        empty(2, 6, 9, 7),
        empty(2, 6, 9, 7).to(memory_format=torch.channels_last),
        empty(2, 6, 1, 1),
        empty(6, 9, 7),
    ]
    weights = [empty(4, 6, 3, 3), empty(6, 1, 3, 2), empty(8, 3, 1, 1), empty(4, 5, 3, 3), empty(4, 6, 11, 3)]
    for x, weight, bias in itertools.product(inputs, weights, (None, empty(4), empty(6))):
        for stride, padding, dilation, groups in (
            (1, 0, 1, 1),
            (2, (1, 0), 2, 6),
            ((2, 1), 1, 1, 2),
            (1, "same", 1, 1),
        ):
            yield x, weight, bias, stride, padding, dilation, groups


@pytest.mark.filterwarnings("ignore:Using padding")
def test_convolutions() -> None:
    for arguments in convolutions():
        compare(FUNCTIONS[F.conv2d], F.conv2d, *arguments)
        x, weight, bias, *sizes, groups = arguments
        if "same" not in sizes:
            pairs = [one if isinstance(one, tuple) else (one, one) for one in sizes]
            for turned in (False, True):
                rest = (*pairs, turned, (0, 0), groups)
                compare(OPERATIONS[aten.convolution], aten.convolution, x, weight, bias, *rest)
    compare(FUNCTIONS[F.conv1d], F.conv1d, empty(2, 6, 9), empty(4, 6, 3), stride=2)
    compare(FUNCTIONS[F.conv3d], F.conv3d, empty(2, 6, 9, 8, 7), empty(4, 6, 3, 3, 3), padding=(1, 0, 2))


OPERANDS = [
    empty(2, 6, 4, 5),
    empty(2, 6, 4, 5).to(memory_format=torch.channels_last),
    empty(2, 6, 1, 1),
    empty(6, 1, 1),
    empty(5),
    empty(1),
    empty(2, 6, 4, 5, dtype=torch.bfloat16),
    empty(2, 6, 4, 5, dtype=torch.int64),
    empty(4, 6, 2, 5).transpose(0, 2),
    empty(),
    empty(3, 6, 4, 5),
    2,
    0.5,
    True,
]


@pytest.mark.parametrize("function", [torch.add, torch.sub, torch.mul, torch.div, Tensor.add, Tensor.mul, Tensor.div])
def test_arithmetic(function: Callable[..., Tensor]) -> None:
    for left, right in itertools.product(OPERANDS, OPERANDS):
        if isinstance(left, Tensor):
            compare(FUNCTIONS[function], function, left, right)
    compare(FUNCTIONS[torch.add], torch.add, OPERANDS[0], OPERANDS[0], alpha=2)


@pytest.mark.parametrize("function", [torch.mean, Tensor.mean, aten.mean])
def test_means(function: Callable[..., Tensor]) -> None:
    shortcut = {**FUNCTIONS, **OPERATIONS}[function]
    for x in OPERANDS[:4] + OPERANDS[6:8]:
        for dim, keepdim in itertools.product((0, (2, 3), [-1, -2], (1, 1), 9), (False, True)):
            compare(shortcut, function, x, [dim] if function is aten.mean and isinstance(dim, int) else dim, keepdim)
        compare(shortcut, function, x)


def test_attention() -> None:
    shortcut, function = FUNCTIONS[F.scaled_dot_product_attention], F.scaled_dot_product_attention
    q, k, v = empty(2, 3, 5, 8), empty(2, 3, 7, 8), empty(2, 3, 7, 4)
    compare(shortcut, function, q, k, v)
    compare(shortcut, function, q, k, v, scale=0.1)
    compare(shortcut, function, q, k, v, empty(5, 7))
    compare(shortcut, function, q, v, k)
    compare(shortcut, function, q, k[:, :1], v[:, :1])


def test_resizing() -> None:
    shortcut = FUNCTIONS[F.interpolate]
    for x in (empty(2, 6, 4, 5), empty(2, 6, 4, 5).to(memory_format=torch.channels_last), empty(2, 6, 4)):
        for mode in ("nearest", "bilinear", "bicubic", "area", "no such mode"):
            for size in (7, (3, 9), (3, 9, 2), (0, 4)):
                compare(shortcut, F.interpolate, x, size, mode=mode)
            compare(shortcut, F.interpolate, x, scale_factor=1.5, mode=mode)
        compare(shortcut, F.interpolate, x, (3, 9), mode="bilinear", align_corners=True, antialias=True)


def test_products() -> None:
    for bias, left, right in itertools.product(
        (empty(4), empty(2, 4), empty(1)), (empty(2, 3), empty(2, 5)), (empty(3, 4),)
    ):
        compare(OPERATIONS[aten.addmm], aten.addmm, bias, left, right)
    compare(FUNCTIONS[F.linear], F.linear, empty(2, 7, 3), empty(4, 3), empty(4))
    compare(FUNCTIONS[F.linear], F.linear, empty(2, 7, 3), empty(4, 5))


def test_norms() -> None:
    for x in (empty(2, 6, 4, 5), empty(2, 6, 4, 5).to(memory_format=torch.channels_last)):
        for width in (6, 5):
            rest = [empty(width)] * 4
            compare(FUNCTIONS[F.batch_norm], F.batch_norm, x, *rest)
            if x.is_contiguous():  # of other images torch's kernel keeps the strides, its meta function does not
                compare(FUNCTIONS[F.group_norm], F.group_norm, x, 2, *rest[:2])
        got = OPERATIONS[aten.native_layer_norm](x, [5], empty(5), empty(5), 1e-5)
        assert forms(got)[0] == forms(aten.native_layer_norm(x, [5], empty(5), empty(5), 1e-5))[0]


@pytest.mark.parametrize("kind", [torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN])
def test_recurrent_layers(kind: type[torch.nn.RNNBase]) -> None:
    function = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN": torch.rnn_tanh}[kind.__name__]
    for layers, bias, batch_first, both_ways, projected in itertools.product((1, 2), *[(False, True)] * 4):
        if projected and kind is not torch.nn.LSTM:
            continue
        options: dict[str, Any] = {"proj_size": 3} if projected else {}
        options |= {"bias": bias, "batch_first": batch_first, "bidirectional": both_ways}
        layer = kind(5, 7, layers, device=META, **options)
        weights = [one for names in layer._all_weights for one in (getattr(layer, name) for name in names)]
        states = tuple(empty(layers * (1 + both_ways), 4, size) for size in ((3 if projected else 7), 7))
        for x in (empty(4, 6, 5), empty(6, 4, 5), empty(4, 6, 4), empty(3, 6, 5)):
            state: Any = states if kind is torch.nn.LSTM else states[1]
            rest = (bias, layers, 0.0, False, both_ways, batch_first)
            compare(FUNCTIONS[function], function, x, state, weights, *rest)
