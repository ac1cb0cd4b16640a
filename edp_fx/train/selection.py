"""Which elements go: the least important per unit of cost saved, over all groups at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edp_fx.train.elements import Elements
from edp_fx.train.prices import Prices

Flags = NDArray[np.bool_]
Scores = NDArray[np.float64]
COARSE = 0.005  # an overshoot below this share of the target is left as it is
RETRIES = 96  # how often a choice that overshoots is made anew without what overshot
REPAIRS = 96  # how many of the last chosen are tried for giving back


@dataclass
class Selector:
    """Chooses elements to remove until the cost, counted after merging, is at most a target.

    Args:
        elements: the flat index.
        prices: what the network costs under a mask, and what each group's elements save.
        floors: the fewest elements each group keeps [groups].
        work: what is saved, for comparing elements and the forms of pairs; ``prices`` where None.
        widths: how many of the channels of the network as it came each channel stands for [n], 0 for other elements.
            Prices are then those at the widths as they came: at present widths the thinner of two factors of a product
            is the cheaper to thin, and greedy choice runs into wide streams between starved layers.
    """

    elements: Elements
    prices: Prices
    floors: NDArray[np.int64]
    work: Prices | None = None
    widths: Scores | None = None

    def total(self, alive: Flags) -> float:
        """Cost of the network with only ``alive`` elements."""
        if self.work is None:
            return self.prices.total(alive)
        return self.prices.total(alive, self.work.apart(alive))

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

    def within_floors(self, unwanted: Flags, alive: Flags) -> Flags:
        """As many of ``unwanted`` [n] as leave every group of ``alive`` its floor."""
        elements, result = self.elements, unwanted.copy()
        for number, (start, stop) in enumerate(zip(elements.offsets[:-1], elements.offsets[1:])):
            allowed = int(alive[start:stop].sum()) - int(self.floors[number])
            mine = start + np.flatnonzero(unwanted[start:stop])
            result[mine[max(0, allowed) :]] = False
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
        now = self.total(alive)
        for part in range(1, rounds + 1):
            goal = target + (now - target) * (1 - part / rounds)
            alive = self._one_round(alive, importance, goal, min(end, goal))
        return alive if fill_from is None else self._give_back(fill_from, alive, importance, target)

    def _one_round(self, alive: Flags, importance: Scores, target: float, end: float) -> Flags:
        if self.total(alive) <= target:
            return alive
        order = self._order(alive, importance)
        best: Flags | None = None
        for _ in range(RETRIES):
            count = self._until(alive, order, target)
            chosen = without(alive, order[:count])
            total = self.total(chosen)
            if best is not None and not self.total(best) < total <= target:
                return best
            best = chosen
            if not count or total >= (1 - COARSE) * end:
                return best
            last = without(alive, order[: count - 1])
            finer = self._finer_last(last, order[count - 1 :], importance, target, chosen)
            if self.total(finer) >= (1 - COARSE) * end:
                return finer
            # the last one saves more than was missing, and no single other one enough: go on without its group
            groups = self.elements.group_of[order]
            order = order[(np.arange(len(order)) < count - 1) | (groups != groups[count - 1])]
        assert best is not None
        return best

    def _until(self, alive: Flags, order: NDArray[np.int64], target: float) -> int:
        """How many of ``order`` have to go for the target, or all of them."""
        low, high = 0, len(order)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.total(without(alive, order[:middle])) <= target else (middle, high)
        return high

    def _finer_last(
        self, alive: Flags, order: NDArray[np.int64], importance: Scores, target: float, chosen: Flags
    ) -> Flags:
        """Instead of a last element that overshoots, the least important one that suffices alone."""
        groups = self.elements.group_of[order]
        firsts = order[np.unique(groups, return_index=True)[1]]
        for element in firsts[np.argsort(importance[firsts], kind="stable")]:
            left = alive.copy()
            left[element] = False
            if self.total(chosen) < self.total(left) <= target:
                return left
        return chosen

    def _order(self, alive: Flags, importance: Scores) -> NDArray[np.int64]:
        """Candidates from the cheapest loss per cost saved to the dearest."""
        elements = self.elements
        seen = alive if self.widths is None else np.maximum(alive, self.widths)
        look = (self.work or self.prices).look(seen)
        candidates: list[NDArray[np.int64]] = []
        prices: list[Scores] = []
        for number, group in enumerate(elements.groups):
            start, stop = elements.offsets[number], elements.offsets[number + 1]
            present = start + np.flatnonzero(alive[start:stop])
            spare = len(present) - int(self.floors[number])
            if spare <= 0:
                continue
            ranked = present[np.argsort(importance[present], kind="stable")][:spare]
            loss = np.maximum(importance[ranked], 0.0)
            if group.kind == "rank":
                price = hull_prices(np.cumsum(loss), look.rank_savings(number, spare))
            else:
                price = _ratio(loss, float(look.marginal[number]))
            wanted = np.isfinite(price)
            candidates.append(ranked[wanted])
            prices.append(price[wanted])
        if not candidates:
            return np.zeros(0, dtype=np.int64)
        # stable, and each group's prices ascend: a group's elements go from its least important up
        return np.concatenate(candidates)[np.argsort(np.concatenate(prices), kind="stable")]

    def _give_back(self, before: Flags, alive: Flags, importance: Scores, target: float) -> Flags:
        chosen = np.flatnonzero(before & ~alive)
        best_first = chosen[np.argsort(-importance[chosen], kind="stable")]
        # half of the tries go to the most important, half to all of the range: something small fits a small
        # gap
        tries = np.arange(len(best_first))
        if len(tries) > REPAIRS:
            tries = np.union1d(tries[: REPAIRS // 2], np.linspace(0, len(tries) - 1, REPAIRS // 2).astype(int))
        alive = alive.copy()
        for element in best_first[tries]:
            alive[element] = True
            if self.total(alive) > target:
                alive[element] = False
        return alive


def without(alive: Flags, elements: NDArray[np.int64]) -> Flags:
    """``alive`` less some elements."""
    left = alive.copy()
    left[elements] = False
    return left


def hull_prices(loss: Scores, saved: Scores) -> Scores:
    """Price per element along the lower convex hull of the points (saved[k], loss[k]), both cumulative.

    Where the first removals save nothing (a rank above the break-even), they are priced together with those
    that make them pay; what never pays costs infinity. Prices ascend.
    """
    prices = np.full(len(loss), np.inf)
    x, y, at = 0.0, 0.0, 0
    while at < len(loss):
        gain = saved[at:] - x
        with np.errstate(divide="ignore", invalid="ignore"):
            slopes = np.where(gain > 0, (loss[at:] - y) / gain, np.inf)
        best = int(len(slopes) - 1 - np.argmin(slopes[::-1]))  # the longest of equal slopes
        if not np.isfinite(slopes[best]):
            break
        prices[at : at + best + 1] = slopes[best]
        x, y, at = float(saved[at + best]), float(loss[at + best]), at + best + 1
        steps, losses = np.diff(saved[at - 1 :]), np.diff(loss[at - 1 :])
        if len(steps) and steps.min() > 0 and bool((np.diff(losses / steps) >= 0).all()):
            prices[at:] = losses / steps  # convex from here on: every removal is its own price
            break
    return prices


def _ratio(loss: Scores, saved: float) -> Scores:
    return loss / saved if saved > 0 else np.full(len(loss), np.inf)
