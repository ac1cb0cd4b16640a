"""Channel labels: which channel *atom* each index of a tensor belongs to.

An atom is a positive integer born with one index of one axis of one parameter or buffer; atom 0 (:data:`FROZEN`)
is absorbing: what is tied to it cannot be removed. A tensor carries a tuple of :class:`Factor`, one for each
independent way in which indices can disappear. Arrays broadcast against the tensor, so a factor is a vector in
the common case and stays *joint* over several axes only between a reshape that splits a channel axis and the
operation that needs one of the parts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

FROZEN = 0
WILDCARD = -1  # an entry that is zero whatever is removed: padding


@dataclass(eq=False, slots=True)
class Factor:
    """One label array of a tensor.

    ``atoms`` has the tensor's number of dimensions and size 1 along every axis it does not depend on. ``zero``
    tells that the tensor's entries are exactly 0 wherever the atom's own parameter entries are 0. ``virtual``: the
    labels were born with a stretched axis, whose entries are all alike and can follow whatever they meet.
    """

    atoms: np.ndarray
    zero: bool = True
    virtual: bool = False
    _axes: tuple[int, ...] | None = field(default=None, init=False, repr=False)

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes along which the labels vary."""
        if self._axes is None:
            self._axes = varying(self.atoms)
        return self._axes

    def with_atoms(self, atoms: np.ndarray) -> Factor:
        """The same factor with other labels."""
        return Factor(atoms, self.zero, self.virtual)


Labels = tuple[Factor, ...]


def varying(atoms: np.ndarray) -> tuple[int, ...]:
    """The axes along which a label array is not of size 1."""
    return tuple([axis for axis, size in enumerate(atoms.shape) if size > 1])


def tensors(*values: Any) -> list[Tensor]:
    """The tensors among operands or results of an ATen operation, where they stand alone or in a list."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [one for one in value if isinstance(one, Tensor)]
    return found


def vector(atoms: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    """A one-dimensional label vector placed along ``axis`` of an ``ndim``-dimensional tensor."""
    shape = [1] * ndim
    shape[axis] = atoms.size
    return atoms.reshape(shape)


def on_axis(labels: Labels, axis: int) -> Factor | None:
    """The factor that varies along ``axis``, or None where the axis is not labelled."""
    for factor in labels:
        if factor.atoms.shape[axis] > 1:
            return factor
    return None


def compress(atoms: np.ndarray) -> np.ndarray:
    """Reduce every axis along which the labels are constant to size 1. Wildcards match any label."""
    for axis in range(atoms.ndim):
        if atoms.shape[axis] == 1:
            continue
        top = atoms.max(axis=axis, keepdims=True)
        if np.all((atoms == top) | (atoms == WILDCARD)):
            atoms = top
    return without_wildcards(atoms)


def without_wildcards(atoms: np.ndarray) -> np.ndarray:
    """Frozen labels in the places of wildcards."""
    wild = atoms == WILDCARD
    return np.where(wild, FROZEN, atoms) if wild.any() else atoms


def repeats_along(atoms: np.ndarray, axis: int) -> bool:
    """True where some slice along ``axis`` shares an atom with another: that axis was merged with an unlabelled one."""
    moved = np.moveaxis(atoms, axis, 0).reshape(atoms.shape[axis], -1)
    first = moved[:, 0]
    return np.unique(first).size < first.size


def drop_trivial(factors: Iterable[Factor]) -> Labels:
    """Only the factors that label something."""
    return tuple(factor for factor in factors if factor.axes)


def run_on(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation on label arrays; the sweep is not active while it handles one."""
    return func(*args, **{name: value for name, value in kwargs.items() if name not in ("device", "dtype")})


def axis_argument(func: Any, args: Any, kwargs: Any) -> int:
    """The ``dim`` that an operation is given, or its default."""
    for position, argument in enumerate(func._schema.arguments):
        if argument.name == "dim":
            return int(args[position] if position < len(args) else kwargs.get("dim", argument.default_value))
    raise ValueError(f"{func} has no dim")
