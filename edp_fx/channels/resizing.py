"""Layers whose sizes stand in attributes, and what these are after the parameters were pruned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from edp_fx.pairs import Pair

InputShape = tuple[int, ...] | None


def resize_module(module: nn.Module, input_shape: InputShape) -> None:
    """Set in/out_channels, groups, num_features, normalized_shape … of ``module`` from its parameters.

    ``input_shape`` (after pruning) serves layers without parameters of their own.
    """
    for kinds, resize in _RESIZES:
        if isinstance(module, kinds):
            resize(module, input_shape)
            return


def _convolution(module: Any, input_shape: InputShape) -> None:
    weight = module.weight
    across, inside = (0, 1)  # axis 0 runs over all groups, axis 1 inside a group; transposed swaps in and out
    old_across = module.in_channels if module.transposed else module.out_channels
    old_inside = (module.out_channels if module.transposed else module.in_channels) // module.groups
    per_group = old_across // module.groups
    if module.groups > 1 and (per_group == 1 or old_inside == 1):
        module.groups = weight.shape[across] // per_group
    whole, part = weight.shape[across], weight.shape[inside] * module.groups
    module.in_channels, module.out_channels = (whole, part) if module.transposed else (part, whole)


def _linear(module: Any, input_shape: InputShape) -> None:
    module.out_features, module.in_features = module.weight.shape


def _bilinear(module: Any, input_shape: InputShape) -> None:
    module.out_features, module.in1_features, module.in2_features = module.weight.shape


def _norm(module: Any, input_shape: InputShape) -> None:
    sized = module.running_mean if module.running_mean is not None else module.weight
    if sized is not None:
        module.num_features = sized.shape[0]
    elif input_shape is not None:
        module.num_features = input_shape[1]


def _group_norm(module: Any, input_shape: InputShape) -> None:
    channels = module.weight.shape[0] if module.weight is not None else (input_shape or (0, module.num_channels))[1]
    if module.num_groups == module.num_channels:
        module.num_groups = channels
    module.num_channels = channels


def _layer_norm(module: Any, input_shape: InputShape) -> None:
    if module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)
    elif input_shape is not None:
        module.normalized_shape = tuple(input_shape[-len(module.normalized_shape) :])


def _embedding(module: Any, input_shape: InputShape) -> None:
    module.num_embeddings, module.embedding_dim = module.weight.shape


def _prelu(module: Any, input_shape: InputShape) -> None:
    module.num_parameters = module.weight.shape[0]


_RESIZES: tuple[tuple[tuple[type[nn.Module], ...], Callable[[Any, InputShape], None]], ...] = (
    ((_ConvNd,), _convolution),
    ((nn.Linear,), _linear),
    ((nn.Bilinear,), _bilinear),
    ((_NormBase,), _norm),
    ((nn.GroupNorm,), _group_norm),
    ((nn.LayerNorm, nn.RMSNorm), _layer_norm),
    ((nn.Embedding,), _embedding),
    ((nn.PReLU,), _prelu),
)
RESIZABLE = (*(kind for kinds, _ in _RESIZES for kind in kinds), Pair)
"""These, their subclasses, and what is made of them alone."""
