"""Bring the size attributes of a layer after its pruned parameters."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd


def resize_module(module: nn.Module, input_shape: tuple[int, ...] | None) -> None:
    """Set in/out_channels, groups, num_features, normalized_shape … of ``module`` from its parameters.

    ``input_shape`` (after pruning) serves layers without parameters of their own.
    """
    if isinstance(module, _ConvNd):
        _resize_conv(module)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _NormBase):
        sized = module.running_mean if module.running_mean is not None else module.weight
        if sized is not None:
            module.num_features = sized.shape[0]
        elif input_shape is not None:
            module.num_features = input_shape[1]
    elif isinstance(module, nn.GroupNorm):
        channels = module.weight.shape[0] if module.weight is not None else (input_shape or (0, module.num_channels))[1]
        if module.num_groups == module.num_channels:
            module.num_groups = channels
        module.num_channels = channels
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        if module.weight is not None:
            module.normalized_shape = tuple(module.weight.shape)
        elif input_shape is not None:
            module.normalized_shape = tuple(input_shape[-len(module.normalized_shape) :])
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.shape[0]


def _resize_conv(module: _ConvNd) -> None:
    weight = module.weight
    across, inside = (0, 1)  # axis 0 runs over all groups, axis 1 inside a group; transposed swaps in and out
    old_across = module.in_channels if module.transposed else module.out_channels
    old_inside = (module.out_channels if module.transposed else module.in_channels) // module.groups
    per_group = old_across // module.groups
    if module.groups > 1 and (per_group == 1 or old_inside == 1):
        module.groups = weight.shape[across] // per_group
    whole, part = weight.shape[across], weight.shape[inside] * module.groups
    module.in_channels, module.out_channels = (whole, part) if module.transposed else (part, whole)
