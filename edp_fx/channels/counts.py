"""Sizes and costs as functions of a keep-set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

Keep = Mapping[int, np.ndarray]
"""Group id -> boolean array [group.size], True = kept; groups not named stay whole."""


@dataclass(frozen=True, eq=False)
class AxisCount:
    """How many indices of an axis are alive: ``fixed`` plus, per group, the multiplicity of each kept element."""

    fixed: float
    weights: dict[int, np.ndarray]

    @cached_property
    def sums(self) -> dict[int, float]:
        """Indices of each group."""
        return {group: float(weight.sum()) for group, weight in self.weights.items()}

    @cached_property
    def whole(self) -> float:
        """Indices with nothing removed."""
        return self.fixed + sum(self.sums.values())

    def alive(self, keep: Keep) -> float:
        """Indices alive under ``keep`` (groups not named are whole)."""
        total = self.whole
        for group, weight in self.weights.items() if keep else ():
            kept = keep.get(group)
            if kept is not None:
                total += float(weight @ kept) - self.sums[group]
        return total

    def without(self, group: int) -> float:
        """Indices left when all of one group are gone."""
        return self.whole - self.sums.get(group, 0.0)


@dataclass(frozen=True, eq=False)
class CostSite:
    """One operation's multiply-accumulates: ``constant`` times the alive indices of each axis, for the whole batch."""

    node: str
    op: str
    constant: float
    axes: tuple[AxisCount, ...]

    def macs(self, keep: Keep) -> float:
        """Multiply-accumulates under ``keep``."""
        result = self.constant
        for axis in self.axes:
            result *= axis.alive(keep)
        return result


def shares_of(terms: list[tuple[float, tuple[AxisCount, ...]]]) -> dict[int, float]:
    """Group -> the share of the sum of products that vanishes with it."""
    lost: dict[int, float] = {}
    total = 0.0
    for constant, axes in terms:
        full = constant * math.prod(axis.whole for axis in axes)
        total += full
        for group in {g for axis in axes for g in axis.weights}:
            lost[group] = lost.get(group, 0.0) + full - constant * math.prod(axis.without(group) for axis in axes)
    return {group: value / total for group, value in lost.items()} if total else {}
