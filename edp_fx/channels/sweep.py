"""What the rules see of one abstract run: the labels of every tensor, and what may be written down of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from edp_fx.channels.atoms import Grid, Ledger, Where
from edp_fx.channels.calls import Calls
from edp_fx.channels.labels import Factor, Labels, drop_trivial, repeats_along, vector


class Sweep:
    """The abstract interpretation: holds the ledger and the labels of every live tensor.

    ``heads`` is ``"dims"`` (an attention head keeps its place and loses dimensions, the same in every head) or
    ``"whole"`` (heads go as a whole).
    """

    def __init__(self, heads: str) -> None:
        self.heads = heads
        self.ledger = Ledger()
        self.calls = Calls()
        self.where = Where("<start>", "<start>")
        self.parameters: dict[str, dict[int, np.ndarray]] = {}
        self.sizes: dict[str, tuple[int, ...]] = {}
        self.outputs: dict[str, list[tuple[tuple[int, ...], Labels]]] = {}  # by graph node
        self.scalars: dict[str, Any] = {}
        self.not_run: dict[str, str] = {}  # graph nodes that do not run without data, and why
        self.dead_results: dict[Any, bool] = {}  # of pointwise operations, see their rule
        self._labels: dict[int, tuple[Tensor, Labels]] = {}  # by id, which the tensor beside keeps its own
        self._unread: dict[int, str] = {}  # names of parameters by id, until an operation asks for their labels
        self._aliases: dict[int, list[Tensor]] = {}  # by id: all that share a tensor's numbers, itself among them

    def labels(self, tensor: Tensor) -> Labels:
        """The factors of ``tensor``; empty for inputs and constants."""
        found = self._labels.get(id(tensor))
        if found is None:
            return ()
        self._unread.pop(id(tensor), None)
        return found[1]

    def unread(self, prefix: str) -> list[str]:
        """Parameters whose names begin so and that no operation has read yet."""
        return [name for name in self._unread.values() if name.startswith(prefix)]

    def freeze_unread(self) -> None:
        """Parameters that nothing read: another mode may read them, and what it would tie is not known."""
        for name in self._unread.values():
            self.where = Where(name, name)
            for atoms in self.parameters[name].values():
                self.freeze(atoms, "nothing reads it in eval mode")

    def set(self, tensor: Tensor, factors: Any) -> None:
        """Give ``tensor`` its factors; jointly labelled ones are remembered as boxes to keep rectangular.

        Two factors on one axis (two labelled axes were merged) cannot be told apart later: they are frozen.
        """
        factors = list(factors)
        for factor in factors:
            if not factor.axes:
                self.freeze(factor, "an index alone on its axis")
        kept = self._disjoint(drop_trivial(factors))
        for factor in kept:
            if any(size not in (1, whole) for size, whole in zip(factor.atoms.shape, tensor.shape, strict=True)):
                raise ValueError(f"labels of shape {factor.atoms.shape} for a tensor of {tuple(tensor.shape)}")
        before = self.labels(tensor)
        self._labels[id(tensor)] = (tensor, kept)
        if any(factor.zero for factor in before) and not all(factor.zero for factor in kept):
            self._written(tensor)
        for factor in kept:
            if len(factor.axes) > 1:
                self.ledger.grids.append(Grid(self.where, factor.atoms))

    def _disjoint(self, factors: Labels) -> Labels:
        if len(factors) < 2 or len({axis for factor in factors for axis in factor.axes}) == sum(
            len(factor.axes) for factor in factors
        ):
            return factors
        kept: list[Factor] = []
        for k, factor in enumerate(factors):
            others = [one for j, one in enumerate(factors) if j != k and set(one.axes) & set(factor.axes)]
            if all(one.virtual for one in others) and not (factor.virtual and others):
                kept.append(factor)
            else:
                self.freeze(factor, "merged with another labelled axis")
        return tuple(kept)

    def alias(self, source: Tensor, views: Any) -> None:
        """``views`` show the numbers of ``source``: what is written into one is in all."""
        known = self._aliases.setdefault(id(source), [source])
        for view in views:
            known.append(view)
            self._aliases[id(view)] = known

    def _written(self, tensor: Tensor) -> None:
        """Something not 0 was written into ``tensor``: nothing that shares its numbers is 0 where it was."""
        for other in self._aliases.get(id(tensor), ()):
            if any(factor.zero for factor in self.labels(other)):
                unzeroed = tuple(Factor(one.atoms, False, one.virtual) for one in self.labels(other))
                self._labels[id(other)] = (other, unzeroed)

    def birth(self, name: str, meta: Tensor, axes: int) -> None:
        """Fresh atoms for the first ``axes`` axes of a parameter or buffer, none for integers: they are indices."""
        if not meta.is_floating_point():
            self.calls.born(meta, ())
            return
        born = {axis: self.ledger.born(size) for axis, size in enumerate(meta.shape[:axes]) if size > 1}
        self.parameters[name] = born
        self.sizes[name] = tuple(meta.shape)
        self._unread[id(meta)] = name
        self._labels[id(meta)] = (
            meta,
            tuple(Factor(vector(atoms, axis, meta.ndim)) for axis, atoms in born.items()),
        )
        self.calls.born(meta, self._labels[id(meta)][1])

    def ran(self, known: Any, args: Any, operands: Sequence[Tensor], results: Sequence[Tensor], sites: range) -> None:
        """An operation was run and its results are labelled."""
        labelled = [(one, self._labels.get(id(one), (one, ()))[1]) for one in results]
        self.calls.ran(self.where, known, args, labelled, operands, sites)

    def forget_tensors(self) -> None:
        """After the run: what was learnt is by node and by parameter."""
        self._labels.clear()
        self._aliases.clear()
        self.dead_results.clear()
        self.calls.forget_tensors()

    def tie(self, left: np.ndarray, right: np.ndarray) -> None:
        """Make two broadcastable label arrays equal."""
        self.ledger.tie(self.where, left, right)

    def freeze(self, factor: Factor | np.ndarray, reason: str) -> None:
        """Nothing that carries these labels can be removed."""
        self.ledger.freeze(self.where, factor.atoms if isinstance(factor, Factor) else factor, reason)

    def collapse(self, factor: Factor, axes: Any) -> Factor:
        """Tie the labels along ``axes``, so that the factor no longer depends on them.

        A factor that depends on nothing else is frozen: it would be all or nothing.
        """
        axes = [axis for axis in axes if factor.atoms.shape[axis] > 1]
        if not axes:
            return factor
        index = tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(factor.atoms.ndim))
        reference = factor.atoms[index]
        if reference.size == 1:
            self.freeze(factor, "an axis of fixed size")
        else:
            self.tie(factor.atoms, reference)
        return factor.with_atoms(reference)

    def split_joint(self, factor: Factor, inner: Any) -> Factor:
        """Make a joint factor depend on ``inner`` axes only, or on none of them.

        With ``heads="dims"`` the inner axes (contracted, normalised, reduced) stay free; with ``"whole"`` the outer
        ones do, and they do too where an inner axis was merged with an unlabelled one (space after a pixel shuffle).
        """
        inner_axes = [axis for axis in factor.axes if axis in inner]
        outer_axes = [axis for axis in factor.axes if axis not in inner]
        if not inner_axes or not outer_axes:
            return factor
        keep_outer = self.heads == "whole" or any(repeats_along(factor.atoms, axis) for axis in inner_axes)
        return self.collapse(factor, inner_axes if keep_outer else outer_axes)
