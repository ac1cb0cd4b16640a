"""Pointwise operations: a broadcast-aware union of the operands' labels."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from edp_fx.channels.labels import Factor, tensors, varying
from edp_fx.channels.rules.registry import rule

if TYPE_CHECKING:
    from edp_fx.channels.sweep import Sweep

aten = torch.ops.aten


@rule(
    aten.masked_fill,
    aten.masked_fill_,
    aten.copy_,
    aten.copy,
    aten.where,
    aten.native_dropout,
    aten.bernoulli,
    aten.fill_,
    aten.zero_,
    aten.bernoulli_,
    aten._prelu_kernel,
    # pointwise without the tag in some releases of torch
    aten.hardtanh,
    aten.hardtanh_,
    aten.relu6,
    aten.hardswish,
    aten.hardswish_,
    aten.hardsigmoid,
    aten.hardsigmoid_,
    aten.leaky_relu_,
    aten.elu_,
    aten.silu_,
    aten.mish_,
    aten.gelu_,
    aten.celu_,
    aten.softplus,
    aten.threshold_,
    aten.nan_to_num_,
    aten.logit_,
)
def pointwise(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Labels of operands that meet at the same index become equal.

    An operand of size 1 along an axis ties nothing there; one of full size without labels fixes the axis.
    """
    outs = tensors(out)
    if not outs:
        return
    ndim = outs[0].ndim
    operands: list[tuple[int, tuple[int, ...], list[Factor]]] = []
    for k, tensor in enumerate(tensors(*args, *kwargs.values())):
        if tensor.ndim > ndim:
            continue
        lead = (1,) * (ndim - tensor.ndim)
        aligned = [
            factor.with_atoms(factor.atoms.reshape(lead + factor.atoms.shape)) for factor in sweep.labels(tensor)
        ]
        operands.append((k, lead + tuple(tensor.shape), aligned))
    factors = merge(sweep, operands)
    labelled = []
    for atoms, carriers in factors:
        labelled.append(Factor(atoms, _zero_when_dead(sweep, func, args, kwargs, carriers)))
    for tensor in outs:
        sweep.set(tensor, labelled)


def merge(
    sweep: Sweep, operands: list[tuple[int, tuple[int, ...], list[Factor]]]
) -> list[tuple[np.ndarray, dict[int, bool]]]:
    """Union the operands' factors; returns (atoms, {operand: is it zero where dead}) for each factor that is left."""
    queue = [(place, factor) for place, _, factors in operands for factor in factors]
    merged: list[tuple[np.ndarray, dict[int, bool]]] = []
    for place, factor in queue:
        factor = _fit(sweep, place, factor, operands)
        if not factor.axes:
            continue
        atoms, carriers = factor.atoms, {place: factor.zero}
        mine = set(factor.axes)
        overlapping = [other for other in merged if mine.intersection(varying(other[0]))]
        merged = [other for other in merged if not mine.intersection(varying(other[0]))]
        for other in overlapping:
            sweep.tie(atoms, other[0])
            carriers = {**other[1], **carriers}
            atoms = atoms if atoms.size >= other[0].size else other[0]
            shape = np.broadcast_shapes(atoms.shape, other[0].shape)
            atoms = np.broadcast_to(atoms, shape)
        merged.append((atoms, carriers))
    return merged


def _fit(sweep: Sweep, place: int, factor: Factor, operands: list[tuple[int, tuple[int, ...], list[Factor]]]) -> Factor:
    """Make ``factor`` independent of the axes the other operands cannot lose indices along."""
    for other, shape, factors in operands:
        if other == place:
            continue
        full = [axis for axis in factor.axes if shape[axis] > 1]
        labelled = {axis for one in factors for axis in one.axes}
        factor = sweep.collapse(factor, [axis for axis in full if axis not in labelled])
        for one in factors:
            shared = set(one.axes) & set(factor.axes)
            # A value for each outer index (a head) against labels of inner ones; inner against inner just unites.
            if shared and set(factor.axes) > set(one.axes) and factor.axes[-1] not in one.axes:
                before = factor
                factor = sweep.split_joint(factor, [axis for axis in factor.axes if axis not in one.axes])
                if not set(factor.axes) & shared and before is not factor:
                    sweep.freeze(one, "one value for a whole axis that stays")
    return factor


def _zero_when_dead(sweep: Sweep, func: Any, args: Any, kwargs: Any, carriers: dict[int, bool]) -> bool:
    """Is the result 0 where the carriers are dead? Found by running the operation once on such operands."""
    place = itertools.count()

    def dead(value: Any) -> Any:
        if isinstance(value, Tensor):
            k = next(place)
            return _Dead(k, value.dtype, carriers.get(k, False))
        return tuple(map(dead, value)) if isinstance(value, (list, tuple)) else value

    given = tuple(map(dead, args))
    named = tuple((name, dead(value)) for name, value in kwargs.items() if name != "device")
    key = (func, given, named, *map(type, (*args, *kwargs.values())))  # 1 and True are equal, but not to an operation
    if key not in sweep.dead_results:
        sweep.dead_results[key] = _gives_zero(func, given, dict(named))
    return sweep.dead_results[key]


@dataclass(frozen=True)
class _Dead:
    """The operand in a place, where what it carries is dead: 0, or any number."""

    place: int
    dtype: torch.dtype
    zero: bool

    def values(self) -> Tensor:
        """Some such numbers."""
        if not self.dtype.is_floating_point:
            return torch.ones(8, device="cpu", dtype=self.dtype)
        if self.zero:
            return torch.zeros(8, device="cpu", dtype=self.dtype)
        generator = torch.Generator().manual_seed(self.place)
        return (torch.rand(8, generator=generator, device="cpu") + 0.5).to(self.dtype)


def _gives_zero(func: Any, args: Any, kwargs: Any) -> bool:
    args, kwargs = tree_map_only(_Dead, _Dead.values, (args, kwargs))
    try:
        result = func(*args, **kwargs)
    except (RuntimeError, NotImplementedError, ValueError):
        return False
    return all(bool((one == 0).all()) for one in tensors(result))
