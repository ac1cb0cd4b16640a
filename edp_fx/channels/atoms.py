"""The ledger of one analysis: births of atoms, what tied them, what froze them, what each operation costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from edp_fx.channels.labels import FROZEN, WILDCARD


class Where(NamedTuple):
    """The graph node and the ATen operation at which something happened."""

    node: str
    op: str


@dataclass(eq=False, slots=True)
class Tie:
    """Atoms made equal, pairwise, at one operation."""

    where: Where
    left: np.ndarray
    right: np.ndarray


@dataclass(eq=False, slots=True)
class Mark:
    """Atoms frozen, or marked inexact, at one operation, and why."""

    where: Where
    atoms: np.ndarray
    reason: str


@dataclass(eq=False, slots=True)
class Grid:
    """A tensor labelled jointly over several axes; indices of the ``fixed`` axes must all stay."""

    where: Where
    atoms: np.ndarray
    fixed: tuple[int, ...] = ()


@dataclass(eq=False, slots=True)
class Mix:
    """An operation that mixes the labelled indices of ``axis`` of its first operand, so that their number matters."""

    where: Where
    axis: int
    atoms: np.ndarray


@dataclass(eq=False, slots=True)
class Site:
    """A multiply-accumulate operation: ``constant`` times the product of the alive indices of each axis."""

    where: Where
    constant: float
    axes: tuple[np.ndarray, ...]


@dataclass
class Ledger:
    """Everything the rules write down while the program runs once."""

    count: int = 1  # atom 0 is FROZEN
    ties: list[Tie] = field(default_factory=list)
    freezes: list[Mark] = field(default_factory=list)
    inexact: list[Mark] = field(default_factory=list)
    mixes: list[Mix] = field(default_factory=list)
    unzeroed: list[Mark] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    unknown_ops: dict[str, Where] = field(default_factory=dict)

    def born(self, size: int) -> np.ndarray:
        """``size`` fresh atoms."""
        atoms = np.arange(self.count, self.count + size, dtype=np.int64)
        self.count += size
        return atoms

    def tie(self, where: Where, left: np.ndarray, right: np.ndarray) -> None:
        """Make two broadcastable label arrays equal; an entry tied to FROZEN freezes."""
        if left.shape != right.shape:
            left, right = np.broadcast_arrays(left, right)
        flat_left, flat_right = left.ravel(), right.ravel()
        differ = flat_left != flat_right
        if np.count_nonzero(differ) < differ.size:
            flat_left, flat_right = flat_left[differ], flat_right[differ]
        if not flat_left.size:
            return
        if np.count_nonzero(flat_left <= FROZEN) or np.count_nonzero(flat_right <= FROZEN):
            known = (flat_left != WILDCARD) & (flat_right != WILDCARD)
            flat_left, flat_right = flat_left[known], flat_right[known]
            frozen = (flat_left == FROZEN) | (flat_right == FROZEN)
            reason = "tied to indices that cannot be removed"
            self.freeze(where, np.maximum(flat_left[frozen], flat_right[frozen]), reason)
            flat_left, flat_right = flat_left[~frozen], flat_right[~frozen]
        self.ties.append(Tie(where, flat_left, flat_right))

    def freeze(self, where: Where, atoms: np.ndarray, reason: str) -> None:
        """These atoms can never be removed."""
        self._mark(self.freezes, where, atoms, reason)

    def mark_inexact(self, where: Where, atoms: np.ndarray, reason: str, axis: int) -> None:
        """Removing these atoms when zero changes the function: an operation mixes ``axis`` by its length."""
        self._mark(self.inexact, where, atoms, reason)
        self.mixes.append(Mix(where, axis, atoms.ravel()))

    def mark_unzeroed(self, where: Where, atoms: np.ndarray) -> None:
        """These channels are not zero at a consumer although their producers are: the consumer's slice must be zero."""
        self._mark(self.unzeroed, where, atoms, "f(0) is not 0 before this consumer")

    @staticmethod
    def _mark(into: list[Mark], where: Where, atoms: np.ndarray, reason: str) -> None:
        atoms = atoms[atoms > FROZEN]
        if atoms.size:
            into.append(Mark(where, atoms, reason))

    def components(self, known: np.ndarray | None = None, since: int = 0) -> np.ndarray:
        """The component id of every atom, in the order of their first atoms. FROZEN is a component of its own.

        ``known``: the components by all ties but those from number ``since`` on; the rest is quick.
        """
        component = np.arange(self.count) if known is None else known
        ties = self.ties[since:]
        if not ties:
            return component
        left, right = (component[np.concatenate([getattr(tie, side) for tie in ties])] for side in ("left", "right"))
        size = int(component.max()) + 1
        matrix = coo_matrix((np.ones(left.size, dtype=np.int8), (left, right)), shape=(size, size))
        return connected_components(matrix, directed=False)[1][component]

    def frozen_components(self, component: np.ndarray) -> dict[int, Mark]:
        """Frozen component id -> the first mark that froze it."""
        first = np.full(int(component.max()) + 1, -1)
        for k in reversed(range(len(self.freezes))):
            first[component[self.freezes[k].atoms]] = k
        frozen = np.flatnonzero(first >= 0)
        return {one: self.freezes[k] for one, k in zip(frozen.tolist(), first[frozen].tolist())}
