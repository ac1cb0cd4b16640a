"""Which elements go: the least important per unit of cost saved, over all groups at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edp_fx.compressor.clock import Clock, Curves
from edp_fx.compressor.elements import Elements
from edp_fx.compressor.prices import Prices
from edp_fx.compressor.removals import Removals, block_ends, block_sizes, hull_prices
from edp_fx.compressor.savings import LAST, Savings

Flags = NDArray[np.bool_]
Scores = NDArray[np.float64]
COARSE = 0.005  # an overshoot below this share of the target is left as it is
RETRIES = 96  # how often a choice that overshoots is made anew without what overshot
ROUNDS = 8  # by time: how often curves are made anew in one decision
WHOLES = 12  # of what can only go as a whole, so many are tried the other way
REPAIRS = 96  # how many of the last chosen are tried for giving back


@dataclass
class Selector:
    """Chooses elements to remove until the cost, counted after merging, is at most a target.

    Args:
        elements: the flat index.
        prices: what the network costs under a mask, and what each group's elements save. By a :class:`Clock` elements
            are taken along the lower convex hull of each group's curve of loss against time saved.
        floors: the fewest elements each group keeps [groups].
        work: what is saved, for comparing elements and the forms of pairs; ``prices`` where None.
        widths: how many of the channels of the network as it came each channel stands for [n], 0 for elements that make
            nothing thinner. Elements are then compared at the widths as they came.
        align: elements of a group of more go, and are given back, in blocks that leave a multiple of so many.
    """

    elements: Elements
    prices: Prices | Clock
    floors: NDArray[np.int64]
    work: Prices | None = None
    widths: Scores | None = None
    align: int = 1

    def total(self, alive: Flags) -> float:
        """Cost of the network with only ``alive`` elements."""
        if self.work is None:
            return self.prices.total(alive)
        return self.prices.total(alive, self.work.as_two(alive))

    def least(self, importance: Scores | None = None) -> float:
        """Cost with every group at its floor."""
        return self.total(self.floored(importance))

    def floored(self, importance: Scores | None = None) -> Flags:
        """Every group at its floor, the most important kept."""
        elements = self.elements
        alive = np.zeros(elements.n, dtype=bool)
        for number, (start, stop) in enumerate(zip(elements.offsets[:-1], elements.offsets[1:])):
            order = np.arange(start, stop)
            if importance is not None:
                order = order[np.argsort(-importance[start:stop], kind="stable")]
            alive[order[: self.floors[number]]] = True
        return alive

    def within_floors(self, zero: Flags, alive: Flags) -> Flags:
        """As many of ``zero`` [n] as leave every group of ``alive`` its floor, in whole blocks."""
        elements, result = self.elements, zero.copy()
        for number, (start, stop) in enumerate(zip(elements.offsets[:-1], elements.offsets[1:])):
            present = int(alive[start:stop].sum())
            mine = start + np.flatnonzero(zero[start:stop])
            allowed = min(len(mine), max(0, present - int(self.floors[number])))
            if allowed:
                ends = np.append(0, block_ends(present, present, self.multiple(number)))
                allowed = int(ends[ends <= allowed][-1])
            result[mine[allowed:]] = False
        return result

    def choose(
        self,
        alive: Flags,
        importance: Scores,
        target: float,
        *,
        fill_from: Flags | None = None,
        rounds: int = 1,
        end: float | None = None,
    ) -> Flags:
        """The elements left, which costs at most ``target`` where the floors allow.

        Args:
            alive: elements present now [n].
            importance: non-negative, comparable over groups [n].
            target: cost not to exceed.
            fill_from: elements of which the most important are given back as long as the target holds.
            rounds: prices are renewed after each of so many equal parts of the way: an element's price falls
                as what it is coupled with goes.
            end: the target of the last choice, ``target`` where None: only what overshoots that is looked at again.
        """
        end = target if end is None else min(end, target)
        if not isinstance(self.prices, Clock):
            left = self._in_rounds(alive, importance, target, end, rounds)
            return left if fill_from is None else self._give_back(fill_from, left, importance, target)
        left = self._by_time(alive, importance, target, end, max(rounds, ROUNDS), fill_from)
        if fill_from is not None:
            left = self._with_wholes(alive, left, importance, target, end, fill_from)
        return left

    def _in_rounds(self, alive: Flags, importance: Scores, target: float, end: float, rounds: int) -> Flags:
        now = self.total(alive)
        for part in range(1, rounds + 1):
            goal = target + (now - target) * (1 - part / rounds)
            alive = self._one_round(alive, importance, goal, min(end, goal))
        return alive

    def _by_time(
        self, alive: Flags, importance: Scores, target: float, end: float, rounds: int, fill_from: Flags | None
    ) -> Flags:
        left = self._in_rounds(alive, importance, target, end, rounds)
        left = self._free_back(alive if fill_from is None else fill_from, left, importance)
        return left if fill_from is None else self._give_back(fill_from, left, importance, target)

    def _with_wholes(
        self, alive: Flags, left: Flags, importance: Scores, target: float, end: float, fill_from: Flags
    ) -> Flags:
        """``left``, or what is left with another choice of what can only go as a whole: what that saves falls with
        every element that goes inside it, so that its curve says too late that it should have gone first."""
        curves = self._savings(alive)
        assert isinstance(curves, Curves)
        wholes = np.flatnonzero((self.elements.sizes == 1) & (self.floors == 0) & alive[self.elements.offsets[:-1]])
        places = self.elements.offsets[wholes]
        saved = np.array([curves.saved(int(group), np.ones(1, dtype=np.int64))[0] for group in wholes])
        kept = float(importance[left].sum())
        for place in places[np.argsort(importance[places] / np.maximum(saved, 1e-12), kind="stable")][:WHOLES]:
            gone = places[~left[places]]
            for others in (gone[gone != place], gone[:0]):  # those that are gone stay so, or all is open again
                changed = np.append(others, place) if left[place] else others
                start = without(alive, changed)
                fill = without(fill_from, np.array([place])) if left[place] else fill_from
                other = self._by_time(start, importance, target, end, 2, fill)
                if self.total(other) <= target and (gain := float(importance[other].sum())) > kept:
                    left, kept = other, gain
                    break
        return left

    def _one_round(self, alive: Flags, importance: Scores, target: float, end: float) -> Flags:
        if self.total(alive) <= target:
            return alive
        removals = self._removals(alive, importance)
        best: Flags | None = None
        cost = 0.0  # of the best
        for _ in range(RETRIES):
            count = self._until(alive, removals, target)
            chosen = without(alive, removals.first(count))
            before, total = best, self.total(chosen)
            if best is None or cost < total <= target:
                best, cost = chosen, total
            if not count or cost >= (1 - COARSE) * end:
                return best
            best, cost = self._finer_last(alive, removals, count - 1, target, best, cost)
            if best is before or cost >= (1 - COARSE) * end:
                return best
            # the last one saves more than was missing, and no single other one enough: go on without its group
            others = (np.arange(len(removals)) < count - 1) | (removals.groups != removals.groups[count - 1])
            removals = removals.taken(np.flatnonzero(others))
        assert best is not None
        return best

    def _until(self, alive: Flags, removals: Removals, target: float) -> int:
        """How many of ``removals`` have to go for the target, or all of them."""
        low, high = 0, len(removals)
        while high - low > 1:
            middle = (low + high) // 2
            enough = self.total(without(alive, removals.first(middle))) <= target
            low, high = (low, middle) if enough else (middle, high)
        return high

    def _finer_last(
        self, alive: Flags, removals: Removals, count: int, target: float, chosen: Flags, cost: float
    ) -> tuple[Flags, float]:
        """After the first ``count``, instead of one that overshoots, the least important one that suffices alone; and
        its cost. Where there is none, what is ``chosen`` and costs ``cost``."""
        left = without(alive, removals.first(count))
        firsts = count + np.unique(removals.groups[count:], return_index=True)[1]
        for number in firsts[np.argsort(removals.losses[firsts], kind="stable")]:
            fewer = without(left, removals.block(number))
            if cost < (total := self.total(fewer)) <= target:
                return fewer, total
        return chosen, cost

    def _removals(self, alive: Flags, importance: Scores) -> Removals:
        """Candidates from the cheapest loss per cost saved to the dearest."""
        elements = self.elements
        savings = self._savings(alive)
        blocks = []
        for number, kind in enumerate(elements.kinds):
            start, stop = elements.offsets[number], elements.offsets[number + 1]
            present = start + np.flatnonzero(alive[start:stop])
            removable = len(present) - int(self.floors[number])
            if removable <= 0:
                continue
            ranked = present[np.argsort(importance[present], kind="stable")][:removable]
            multiple = self.multiple(number)
            ends = block_ends(len(present), removable, multiple)
            loss = np.maximum(importance[ranked], 0.0)
            if multiple > 1:
                loss = np.add.reduceat(loss, ends - block_sizes(ends))
            if isinstance(savings, Savings):
                price = kind.prices(savings, number, loss, ends)
            else:
                price = hull_prices(np.cumsum(loss), savings.saved(number, ends))
            price = np.maximum.accumulate(price)  # they ascend but for rounding
            paying = int(np.isfinite(price).sum())
            if paying:
                blocks.append((number, ranked, ends[:paying], loss[:paying], price[:paying]))
        return Removals.by_price(blocks)

    def _savings(self, alive: Flags) -> Savings | Curves:
        if isinstance(self.prices, Clock):
            return self.prices.curves(alive)
        prices = self.work or self.prices
        seen = alive if self.widths is None else np.maximum(alive, self.widths)
        reference = prices.savings(seen)
        # what saves cost but no work goes last
        least = np.zeros(len(self.elements.kinds)) if self.work is None else LAST * self.prices.savings(seen).marginal
        return Savings(reference, lambda: reference if self.widths is None else prices.savings(alive), least)

    def multiple(self, group: int) -> int:
        """Of how many elements the blocks of a group are."""
        return self.elements.kinds[group].block(int(self.elements.sizes[group]), self.align)

    def _free_back(self, before: Flags, alive: Flags, importance: Scores) -> Flags:
        """``alive`` with as many of each group's elements of ``before`` as take no time, the most important first:
        where a device computes whole tiles, less than one tile less saved nothing."""
        alive, most = alive.copy(), self.total(alive) * (1 + 1e-9)
        for number, (start, stop) in enumerate(zip(self.elements.offsets[:-1], self.elements.offsets[1:])):
            gone = start + np.flatnonzero(before[start:stop] & ~alive[start:stop])
            gone = gone[np.argsort(-importance[gone], kind="stable")]
            low, high = 0, len(gone)
            while low < high:
                middle = (low + high + 1) // 2
                alive[gone[:middle]] = True
                fits = self.total(alive) <= most
                alive[gone[:middle]] = False
                low, high = (middle, high) if fits else (low, middle - 1)
            alive[gone[: low // self.multiple(number) * self.multiple(number)]] = True
        return alive

    def _give_back(self, before: Flags, alive: Flags, importance: Scores, target: float) -> Flags:
        """``alive`` with whole blocks of ``before``, the one with the most important element first, while they fit."""
        gone = np.flatnonzero(before & ~alive)
        gone = gone[np.argsort(-importance[gone], kind="stable")]
        blocks: list[NDArray[np.int64]] = []
        for number in np.unique(self.elements.group_of[gone]):
            mine, size = gone[self.elements.group_of[gone] == number], self.multiple(number)
            blocks.extend(mine[: len(mine) // size * size].reshape(-1, size))
        blocks.sort(key=lambda block: -importance[block[0]])
        # half of the tries go to the most important, half to all of the range: something small fits a small
        # gap
        tries = np.arange(len(blocks))
        if len(tries) > REPAIRS:
            tries = np.union1d(tries[: REPAIRS // 2], np.linspace(0, len(tries) - 1, REPAIRS // 2).astype(int))
        alive = alive.copy()
        for number in tries:
            alive[blocks[number]] = True
            if self.total(alive) > target:
                alive[blocks[number]] = False
        return alive


def without(alive: Flags, elements: NDArray[np.int64]) -> Flags:
    """``alive`` less some elements."""
    left = alive.copy()
    left[elements] = False
    return left
