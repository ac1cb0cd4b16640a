"""The cost model as array arithmetic: whole-network cost and the price of every group in well under a
millisecond.

Every term of the cost is an overhead plus a constant times the number of living indices along a few axes, and
that number is linear in the elements kept. One sparse product therefore gives all axes, and a product along each
term its cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray

from edp_fx.channels.counts import AxisCount
from edp_fx.compressor.elements import Elements
from edp_fx.compressor.savings import MaskSavings

if TYPE_CHECKING:
    from edp_fx.cost import CostModel

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]


def living(axes: Sequence[AxisCount], elements: Elements) -> tuple[Floats, sparse.csr_matrix]:
    """What gives the living indices along every axis, and a last one that always counts 1: ``fixed + matrix @ alive``.

    Groups outside of ``elements`` count as whole.

    Returns:
        fixed [axes + 1] and matrix [axes + 1, n].
    """
    position = {group.id: number for number, group in enumerate(elements.groups)}
    fixed: list[float] = []
    rows: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
    columns: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
    weights: list[Floats] = [np.zeros(0)]
    for number, axis in enumerate(axes):
        rest = float(axis.fixed)
        for group, weight in axis.weights.items():
            if group not in position:
                rest += float(weight.sum())
                continue
            used = np.flatnonzero(weight)
            rows.append(np.full(len(used), number, dtype=np.int64))
            columns.append(elements.offsets[position[group]] + used)
            weights.append(np.asarray(weight, dtype=np.float64)[used])
        fixed.append(rest)
    place = np.concatenate(rows), np.concatenate(columns)
    return np.array([*fixed, 1.0]), sparse.csr_matrix(
        (np.concatenate(weights), place), shape=(len(axes) + 1, elements.n)
    )


class Prices:
    """Evaluates ``cost`` on flat masks of ``elements``; groups outside of them count as whole."""

    def __init__(self, cost: CostModel, elements: Elements) -> None:
        self.elements = elements
        plain, pairs, self.scale = cost.terms
        terms = [*plain, *(term for pair in pairs for term in (pair.basis, pair.coefficient, pair.merged))]
        self.constant = np.array([term.constant for term in terms], dtype=np.float64)
        self.overhead = np.array([term.overhead for term in terms], dtype=np.float64)
        known: dict[int, int] = {}
        counted: list[AxisCount] = []
        # axis number `none` is a dummy that always counts 1
        axes = np.full((len(terms), max((len(term.axes) for term in terms), default=0)), -1, dtype=np.int64)
        gates = np.full((len(terms), max((len(term.gates) for term in terms), default=0)), -1, dtype=np.int64)
        for number, term in enumerate(terms):
            for place, axis in enumerate((*term.axes, *term.gates)):
                if id(axis) not in known:
                    known[id(axis)] = len(counted)
                    counted.append(axis)
                at_gate = place - len(term.axes)
                (axes if at_gate < 0 else gates)[number, place if at_gate < 0 else at_gate] = known[id(axis)]
        none = len(counted)
        # [places, terms]: a product along short rows costs more than one of whole columns
        self.axes = np.ascontiguousarray(np.where(axes < 0, none, axes).T)
        self.gates = np.ascontiguousarray(np.where(gates < 0, none, gates).T)
        self.fixed, self.matrix = living(counted, elements)
        self.plain = len(plain)
        self.pairs = len(pairs)
        self._incidences()

    def _incidences(self) -> None:
        """Which unit (plain term or pair) is touched by which group, and by how much an element shortens an
        axis."""
        elements = self.elements
        member = sparse.csr_matrix(
            (1.0 / elements.sizes[elements.group_of], (np.arange(elements.n), elements.group_of)),
            shape=(elements.n, len(elements.groups)),
        )
        mean = (self.matrix @ member).tocsc()  # axes x groups: mean weight of one element
        unit_of_term = np.concatenate([np.arange(self.plain), self.plain + np.repeat(np.arange(self.pairs), 3)]).astype(
            np.int64
        )
        touching: list[NDArray[np.int64]] = []
        for group in range(len(elements.groups)):
            mine = np.zeros(len(self.fixed), dtype=bool)
            mine[mean.indices[mean.indptr[group] : mean.indptr[group + 1]]] = True
            hit = mine[self.axes].any(axis=0) | mine[self.gates].any(axis=0)
            units = np.unique(unit_of_term[hit])
            touching.append(np.stack([units, np.full(len(units), group)], axis=1))
        pairs = np.concatenate([*touching, np.zeros((0, 2))]).astype(np.int64)
        self.touch_unit, self.touch_group = pairs[:, 0], pairs[:, 1]
        is_pair = self.touch_unit >= self.plain
        self.touch_plain = np.flatnonzero(~is_pair)
        self.touch_pair = np.flatnonzero(is_pair)
        rows = mean.tocsr()
        units, groups = self.touch_unit[self.touch_plain], self.touch_group[self.touch_plain]
        self.plain_less = self._less(rows, units, groups)
        self.pair_units, self.pair_groups = (
            self.touch_unit[self.touch_pair] - self.plain,
            self.touch_group[self.touch_pair],
        )
        self.pair_less = [
            self._less(rows, self.plain + 3 * self.pair_units + which, self.pair_groups) for which in range(3)
        ]

    def _less(self, mean: sparse.csr_matrix, terms: NDArray[np.int64], groups: NDArray[np.int64]) -> _Less:
        def shortened(of: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], Floats]]:
            none = np.zeros(0)
            return [(one[terms], np.asarray(mean[one[terms], groups]).ravel() if len(terms) else none) for one in of]

        return _Less(self.constant[terms], self.overhead[terms], shortened(self.axes), shortened(self.gates))

    def _alive(self, alive: Flags | Floats) -> Floats:
        return self.fixed + self.matrix @ alive.astype(np.float64)

    def _terms(self, axes: Floats, first: int = 0) -> Floats:
        """Cost of the terms from ``first`` on."""
        cost = self.overhead[first:] + self.constant[first:] * _product(axes, self.axes[:, first:])
        return cost * _product(axes, self.gates[:, first:]) if len(self.gates) else cost

    def _units(self, terms: Floats) -> tuple[Floats, Floats, Floats]:
        """Cost of the plain terms, of the pairs as two layers, and of the pairs merged."""
        three = terms[self.plain :].reshape(-1, 3)
        return terms[: self.plain], three[:, 0] + three[:, 1], three[:, 2]

    def as_two(self, alive: Flags) -> Flags:
        """Which pairs are cheaper as two layers [pairs]."""
        if not self.pairs:
            return np.zeros(0, dtype=bool)
        three = self._terms(self._alive(alive), self.plain).reshape(-1, 3)
        return three[:, 0] + three[:, 1] < three[:, 2]

    def total(self, alive: Flags, as_two: Flags | None = None) -> float:
        """Cost of the network with only ``alive`` elements [n], the pairs ``as_two`` as two layers; every pair at the
        cheaper of its two forms where None."""
        plain, two, merged = self._units(self._terms(self._alive(alive)))
        best = np.minimum(two, merged) if as_two is None else np.where(as_two, two, merged)
        return float((plain.sum() + best.sum()) * self.scale)

    def savings(self, alive: Flags | Floats) -> MaskSavings:
        """What every group's elements save, seen from ``alive``."""
        axes = self._alive(alive)
        plain, two, merged = self._units(self._terms(axes))
        best = np.concatenate([plain, np.minimum(two, merged)])
        after = np.zeros(len(self.touch_unit))
        after[self.touch_plain] = self.plain_less.cost(axes)
        three = [less.cost(axes) for less in self.pair_less]
        after[self.touch_pair] = np.minimum(three[0] + three[1], three[2])
        saved = np.bincount(self.touch_group, best[self.touch_unit] - after, minlength=len(self.elements.groups))
        two, merged = two[self.pair_units], merged[self.pair_units]
        slope = two - three[0] - three[1]
        return MaskSavings(np.maximum(0.0, saved) * self.scale, self.scale, self.pair_groups, two, merged, slope)


@dataclass(frozen=True)
class _Less:
    """Terms of which each is seen with one element less of some group.

    Attributes:
        constant, overhead: of the terms.
        axes, gates: their axes place by place, and by how much the element shortens each.
    """

    constant: Floats
    overhead: Floats
    axes: list[tuple[NDArray[np.int64], Floats]]
    gates: list[tuple[NDArray[np.int64], Floats]]

    def cost(self, axes: Floats) -> Floats:
        """Of each, given the indices left along all axes."""
        cost = self.constant * self._counts(axes, self.axes) + self.overhead
        return cost * self._counts(axes, self.gates)

    def _counts(self, axes: Floats, shortened: list[tuple[NDArray[np.int64], Floats]]) -> Floats:
        result = np.ones(len(self.constant))
        for place, less in shortened:
            result *= np.maximum(0.0, axes[place] - less)
        return result


def _product(values: Floats, places: NDArray[np.int64]) -> Floats:
    """Product of ``values`` at ``places`` [places, terms] for each term."""
    if not len(places):
        return np.ones(places.shape[1])
    result = values[places[0]]
    for one in places[1:]:
        result *= values[one]
    return result
