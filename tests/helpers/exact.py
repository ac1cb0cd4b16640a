"""The exact optimum of a choice: an integer programme over how many elements of each group go."""

from __future__ import annotations

import itertools

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from edp_fx.compressor.clock import Clock
from edp_fx.compressor.removals import block_ends
from edp_fx.compressor.selection import Selector

Floats = NDArray[np.float64]


def least_loss(selector: Selector, importance: Floats, target: float, seconds: float = 20.0) -> float:
    """The least importance that has to go for a time of at most ``target``.

    In each group elements go from the least important up, in its blocks, down to its floor.
    """
    clock, elements = selector.prices, selector.elements
    assert isinstance(clock, Clock)
    levels: list[Floats] = []  # per group: [levels, axes] living indices that it adds
    losses: list[Floats] = []
    for number, (start, stop) in enumerate(zip(elements.offsets[:-1], elements.offsets[1:])):
        order = start + np.argsort(importance[start:stop], kind="stable")
        removable = len(order) - int(selector.floors[number])
        ends = block_ends(len(order), removable, selector.multiple(number)) if removable else np.zeros(0, dtype=int)
        ends = np.append(0, ends)
        kept = np.zeros((len(ends), elements.n))
        kept[:, start:stop] = 1.0
        for level, end in enumerate(ends):
            kept[level, order[:end]] = 0.0
        levels.append(np.asarray((clock.matrix @ kept.T).T))
        losses.append(np.append(0.0, np.cumsum(importance[order]))[ends])
    first = np.cumsum([0, *(len(one) for one in losses)])
    count = int(first[-1])
    cost, rows = [np.zeros(count)], []
    fixed = 0.0
    variables = count
    for touching, price in _units(selector, levels):
        shape = price.shape
        if not touching:
            fixed += float(price)
        elif len(touching) == 1:
            cost[0][first[touching[0]] : first[touching[0] + 1]] += price
        else:
            cost.append(price.ravel())
            place = np.arange(price.size).reshape(shape)
            for axis, group in enumerate(touching):
                for level in range(shape[axis]):
                    which = np.take(place, level, axis=axis).ravel()
                    rows.append(({first[group] + level: -1.0} | {variables + one: 1.0 for one in which.tolist()}, 0.0))
            variables += price.size
    for group in range(len(losses)):
        rows.append(({one: 1.0 for one in range(first[group], first[group + 1])}, 1.0))
    entries = [(row, column, value) for row, (line, _) in enumerate(rows) for column, value in line.items()]
    matrix = sparse.csr_matrix(
        ([one[2] for one in entries], ([one[0] for one in entries], [one[1] for one in entries])),
        shape=(len(rows), variables),
    )
    equal = np.array([right for _, right in rows])
    loss = np.concatenate([*losses, np.zeros(variables - count)])
    found = milp(
        loss,
        integrality=np.append(np.ones(count), np.zeros(variables - count)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(matrix, equal, equal),
            LinearConstraint(np.concatenate(cost)[None], -np.inf, target - fixed),
        ],
        options={"time_limit": seconds, "mip_rel_gap": 1e-4},
    )
    assert found.x is not None, found.message
    return float(found.fun)


def _units(selector: Selector, levels: list[Floats]) -> list[tuple[list[int], Floats]]:
    """Each launch or pair: the groups that it depends on, and its time for every combination of their levels."""
    clock = selector.prices
    assert isinstance(clock, Clock)
    by_unit: dict[int, list[int]] = {}
    for group, units_of in enumerate(_touched(clock)):
        for unit in units_of:
            by_unit.setdefault(unit, []).append(group)
    found = []
    whole = sum(level[0] for level in levels)
    units = clock.plain + (len(clock.times.constant) - clock.plain) // 3
    for unit in range(units):
        mine = by_unit.get(unit, [])
        terms = [unit] if unit < clock.plain else [clock.plain + 3 * (unit - clock.plain) + k for k in range(3)]
        times = clock.times.part(np.array(terms))
        shape = tuple(len(levels[group]) for group in mine)
        counts = []
        for combination in itertools.product(*(range(size) for size in shape)):
            line = clock.fixed + whole
            for group, level in zip(mine, combination):
                line = line + levels[group][level] - levels[group][0]
            counts.append(line)
        each = times.of(np.array(counts))
        price = each[:, 0] if unit < clock.plain else np.minimum(each[:, 0] + each[:, 1], each[:, 2])
        found.append((mine, price.reshape(shape)))
    return found


def _touched(clock: Clock) -> list[list[int]]:
    """Per group: the launches and pairs whose sizes it changes."""
    times, found = clock.times, []
    for start, stop in zip(clock.elements.offsets[:-1], clock.elements.offsets[1:]):
        axes = np.zeros(len(clock.fixed), dtype=bool)
        axes[np.unique(clock.matrix[:, start:stop].nonzero()[0])] = True
        hit = axes[times.inner] | axes[times.outer] | axes[times.others].any(axis=1) | axes[times.gates].any(axis=1)
        hit[times.term[axes[times.sizes].any(axis=1)]] = True
        terms = np.flatnonzero(hit)
        units = np.where(terms < clock.plain, terms, clock.plain + (terms - clock.plain) // 3)
        found.append(sorted(set(units.tolist())))
    return found
