"""Pooling, interpolation, padding by what is there: they act on the last axes and leave the channels alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from edp_fx.channels.labels import Factor
from edp_fx.channels.rules.registry import rule

if TYPE_CHECKING:
    from edp_fx.channels.sweep import Sweep

aten = torch.ops.aten


def spatial(axes: int) -> Any:
    """The rule for an operation on the last ``axes`` axes: labels there are tied, all others pass."""

    def trailing_axes(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        x: Tensor = args[0]
        trailing = range(x.ndim - axes, x.ndim)
        factors = [sweep.collapse(one, trailing) for one in sweep.labels(x)]
        for result in tree_leaves(out):
            if isinstance(result, Tensor) and result.ndim == x.ndim:
                sweep.set(result, [Factor(one.atoms, one.zero) for one in factors])

    return trailing_axes


rule(
    aten.reflection_pad1d,
    aten.replication_pad1d,
    aten.avg_pool1d,
    aten.max_pool1d,
    aten.adaptive_avg_pool1d,
    aten.upsample_nearest1d,
    aten.upsample_linear1d,
    aten._upsample_nearest_exact1d,
)(spatial(1))

rule(
    aten.reflection_pad2d,
    aten.replication_pad2d,
    aten.avg_pool2d,
    aten.max_pool2d,
    aten.max_pool2d_with_indices,
    aten.adaptive_avg_pool2d,
    aten._adaptive_avg_pool2d,
    aten.adaptive_max_pool2d,
    aten.upsample_nearest2d,
    aten.upsample_bilinear2d,
    aten.upsample_bicubic2d,
    aten._upsample_nearest_exact2d,
    aten._upsample_bilinear2d_aa,
    aten._upsample_bicubic2d_aa,
    aten.grid_sampler_2d,
)(spatial(2))

rule(
    aten.reflection_pad3d,
    aten.replication_pad3d,
    aten.avg_pool3d,
    aten.max_pool3d,
    aten.max_pool3d_with_indices,
    aten.adaptive_avg_pool3d,
    aten._adaptive_avg_pool3d,
    aten.upsample_nearest3d,
    aten.upsample_trilinear3d,
)(spatial(3))
