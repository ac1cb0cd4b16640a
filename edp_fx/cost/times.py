"""Milliseconds of launches on a device, as array arithmetic over many keep-sets at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray

from edp_fx.channels.counts import AxisCount
from edp_fx.cost.device import Device
from edp_fx.cost.terms import Term
from edp_fx.cost.work import CONVOLUTION, GROUPED, MATRICES, MEMORY, Work

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
FEW = 8  # channels of an image, at most
SECTOR = 32  # bytes that a GPU reads or writes at least
NOTHING = Work(MEMORY, launches=0.0)


@dataclass(frozen=True, eq=False)
class Times:
    """Some terms on a device.

    ``axes`` are all that the terms depend on; the number of living indices along each, with a 1 behind the last, is
    what :meth:`of` takes.
    """

    device: Device
    axes: tuple[AxisCount, ...]
    constant: Floats  # of each term's multiply-accumulates
    others: Indices  # axes of its product but the last two [terms, …]; the position behind the last axis is a dummy
    inner: Indices  # the axis of inputs
    outer: Indices  # the axis of outputs
    gates: Indices
    taps: Floats
    groups: Floats
    queries: Floats
    launches: Floats
    tiled: NDArray[np.bool_]
    families: NDArray[np.object_]
    rate: Floats  # multiply-accumulates a millisecond
    tile: Floats  # of outputs
    overhead: Floats
    bytes: Floats  # of each thing read or written
    term: Indices  # whose that is
    sizes: Indices  # its axes

    @classmethod
    def made(cls, terms: Sequence[Term], device: Device) -> Times:
        """Of ``terms`` in their order; one without work costs its overhead only."""
        known: dict[int, int] = {}
        axes: list[AxisCount] = []

        def place(axis: AxisCount) -> int:
            if id(axis) not in known:
                known[id(axis)] = len(axes)
                axes.append(axis)
            return known[id(axis)]

        works = [term.work or NOTHING for term in terms]
        products = [[place(axis) for axis in term.axes] for term in terms]
        gates = [[place(axis) for axis in term.gates] for term in terms]
        traffic = [(number, size) for number, work in enumerate(works) for size in work.traffic]
        sizes = [[place(axis) for axis in size.axes] for _, size in traffic]
        dummy = len(axes)
        families = np.array([work.family for work in works], dtype=object)
        inner = np.array([one[-2] if len(one) > 1 else dummy for one in products], dtype=np.int64)
        outer = np.array([one[-1] if one else dummy for one in products], dtype=np.int64)
        groups = np.array([work.groups for work in works], dtype=np.float64)
        return cls(
            device,
            tuple(axes),
            np.array([term.constant for term in terms], dtype=np.float64),
            _padded([one[:-2] for one in products], dummy),
            inner,
            outer,
            _padded(gates, dummy),
            np.array([work.taps for work in works], dtype=np.float64),
            groups,
            np.array([work.queries for work in works], dtype=np.float64),
            np.array([work.launches for work in works], dtype=np.float64),
            np.isin(families, (CONVOLUTION, MATRICES, GROUPED)),
            families,
            np.array([1e9 * device.peak * device.reached(work.family) for work in works], dtype=np.float64),
            device.tile_outputs * np.where(families == GROUPED, 0.25, 1.0),
            np.array([term.overhead for term in terms], dtype=np.float64),
            np.array([size.constant for _, size in traffic], dtype=np.float64) * device.bytes,
            np.array([number for number, _ in traffic], dtype=np.int64),
            _padded(sizes, dummy),
        )

    def on(self, device: Device) -> Times:
        """The same on another device of the same tiles and precision."""
        rate = np.array([1e9 * device.peak * device.reached(family) for family in self.families], dtype=np.float64)
        return replace(self, device=device, rate=rate)

    def part(self, terms: Indices) -> Times:
        """Only these terms, in this order, over the same axes."""
        place = np.full(len(self.constant), -1, dtype=np.int64)
        place[terms] = np.arange(len(terms))
        mine = np.flatnonzero(place[self.term] >= 0)
        each = (
            "constant", "others", "inner", "outer", "gates", "taps", "groups", "queries", "launches", "tiled",
            "families", "rate", "tile", "overhead",
        )  # fmt: skip
        changed = {name: getattr(self, name)[terms] for name in each}
        return replace(self, **changed, bytes=self.bytes[mine], term=place[self.term[mine]], sizes=self.sizes[mine])

    def of(self, counts: Floats) -> Floats:
        """Milliseconds of each term [..., terms] where the axes have ``counts`` [..., axes + 1] living indices."""
        device, step = self.device, self.device.tile_inputs
        inputs, outputs = counts[..., self.inner] / self.groups, counts[..., self.outer] / self.groups
        # channels are padded at every position of a kernel, but for the few of an image
        deep = _ceil(np.where(inputs > FEW, inputs, inputs * self.taps) / step) * step
        deep *= np.where(inputs > FEW, self.taps, 1.0)
        tiles = _ceil(outputs / self.tile) * self.tile * deep * self.groups**2 / self.taps
        plain = counts[..., self.inner] * counts[..., self.outer]
        macs = self.constant * counts[..., self.others].prod(axis=-1) * np.where(self.tiled, tiles, plain)
        numbers = self.bytes * counts[..., self.sizes].prod(axis=-1)
        moved = numbers @ self._whose
        arithmetic = macs / self.rate
        if device.softmax and self.queries.any():  # of whole blocks of scores, beside the products
            scores = self.constant * counts[..., self.others].prod(axis=-1) * _ceil(outputs / self.tile) * self.tile
            whole = _ceil(self.queries / self.tile) * self.tile / np.maximum(1.0, self.queries)
            arithmetic = arithmetic + scores * whole / (1e9 * device.softmax)
        result = np.maximum(arithmetic, moved / (1e6 * device.bandwidth * device.memory))
        if device.uneven < 1:
            odd = _odd(counts[..., self.inner], device) & _odd(counts[..., self.outer], device)
            result = np.where(odd & (inputs > FEW) & (self.families == CONVOLUTION), result / device.uneven, result)
        result = result + self.overhead + self.launches * device.launch * 1e-3
        return np.asarray(result * counts[..., self.gates].prod(axis=-1))

    @staticmethod
    def split(times: Floats, plain: int) -> tuple[Floats, Floats, Floats]:
        """Of [..., terms], ``plain`` ones and then three of each pair: the plain ones', and of each pair the time as
        two layers and the time merged."""
        three = times[..., plain:].reshape(*times.shape[:-1], -1, 3)
        return times[..., :plain], three[..., 0] + three[..., 1], three[..., 2]

    @cached_property
    def _whose(self) -> sparse.csr_matrix:
        """Sums what is read and written by term."""
        one = np.ones(len(self.term))
        return sparse.csr_matrix((one, (np.arange(len(self.term)), self.term)), (len(self.term), len(self.constant)))


def _ceil(values: Floats) -> Floats:
    return np.asarray(np.ceil(values - 1e-9))


def _odd(channels: Floats, device: Device) -> NDArray[np.bool_]:
    """Whether rows of so many channels end within a sector of memory."""
    sectors = channels * device.bytes / SECTOR
    return np.asarray(np.abs(sectors - np.round(sectors)) > 1e-6)


def _padded(rows: Sequence[Sequence[int]], dummy: int) -> Indices:
    width = max((len(row) for row in rows), default=0)
    result = np.full((len(rows), width), dummy, dtype=np.int64)
    for number, row in enumerate(rows):
        result[number, : len(row)] = row
    return result
