"""A budget of time on a device: asked, predicted and measured, and the choice corrected by what is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from edp_fx.compressor.budget import Budget
from edp_fx.cost import Device, load_device
from edp_fx.cost.device import DEFAULT
from edp_fx.errors import LoweringError
from edp_fx.latency import RUNTIMES, Meter, Reading, Runtime, make_runtime

Flags = NDArray[np.bool_]
WITHIN = 0.025  # of what is asked: near enough to stop correcting
MET = 0.05  # what is measured may miss what is asked by so much
TRIES = 4


def device_of(budget: Budget | None, runtime: Runtime | None) -> tuple[Device | None, int]:
    """The device that a budget of latency is of, and the images of a call; (None, 1) for any other budget.

    Where networks are to be measured on a runtime the device counts what that fuses.
    """
    if budget is None or budget.metric != "latency":
        return None, 1
    device = load_device(budget.device if budget.device is not None else DEFAULT)
    if runtime is not None and budget.device is None and runtime.name in RUNTIMES:
        device = device.under(runtime.name)
    return device, budget.batch


class Timing:
    """Follows a budget of latency through a run.

    Args:
        budget: what is asked.
        device: predicts.
        runtime: what measures; the device itself where None, if it is at hand.
        dense: the network as it came, not changed later.
        example_inputs: what it takes.

    Attributes:
        reason: why nothing is measured, None where it is.
    """

    def __init__(
        self, budget: Budget, device: Device, runtime: Runtime | None, dense: fx.GraphModule, example_inputs: Any
    ) -> None:
        self.budget, self.device = budget, device
        self.reason: str | None = None
        self.reading: Reading | None = None
        if runtime is None:
            if device.at_hand and device.runtime in RUNTIMES:
                try:
                    runtime = make_runtime(device.runtime, threads=device.threads, precision=device.precision)
                except LoweringError as error:
                    self.reason = str(error)
            else:
                self.reason = f"{device.name} is not at hand: it is predicted, not measured"
        self._meter = Meter(runtime, budget.batch, dense, example_inputs) if runtime is not None else None
        self.runtime = runtime.name if runtime is not None else device.runtime
        self._dense_ms = self._meter.dense_ms() if self._meter is not None and budget.value > 1 else None
        self.predicted = self.share = 1.0

    @property
    def measures(self) -> bool:
        """Whether networks are measured."""
        return self._meter is not None

    def target(self, dense: float) -> float:
        """What must not be exceeded of the dense network's cost, ``dense``, if the device's prediction is right."""
        if self.budget.value <= 1:
            self.share = self.budget.value
        else:
            self.share = min(1.0, self.budget.value / (self._dense_ms or dense))
        return self.share * dense

    def read(self, network: fx.GraphModule, predicted: float) -> float | None:
        """Measure a network, predicted to take that share of the dense one's time: the measured share over the share
        asked for, None where nothing is measured."""
        self.predicted = predicted
        if self._meter is None:
            return None
        self.reading = self._meter.compare(network)
        if self.budget.value > 1:
            self.share = min(1.0, self.budget.value / self.reading.dense_ms)
        return self.reading.share / self.share

    def choose(
        self,
        select: Callable[[float], Flags],
        preview: Callable[[Flags], fx.GraphModule],
        cost: Callable[[Flags], float],
        goal: float,
        dense: float,
        least: float,
        tries: int = TRIES,
    ) -> tuple[Flags, float]:
        """What ``select`` leaves for the goal at which the network measures what is asked.

        Args:
            select: a predicted cost not to exceed -> the elements left.
            preview: what the network would be with only these.
            cost: its predicted cost.
            goal: predicted cost to start from.
            dense: that of the network as it came.
            least: the least that can be reached.
            tries: how often the goal is corrected.

        Returns:
            The elements left in the try that came nearest, and its goal.
        """
        best: tuple[float, Flags, float] | None = None
        above, below = dense, 0.0  # goals known to measure too much, and less than is asked
        for _ in range(tries):
            left = select(goal)
            ratio = self.read(preview(left), cost(left) / dense)
            if ratio is None:
                return left, goal
            miss = abs(float(np.log(ratio)))
            if best is None or miss < best[0]:
                best = miss, left, goal
            if miss <= WITHIN or (goal <= least and ratio > 1) or (goal >= dense and ratio < 1):
                break
            above, below = (min(above, goal), below) if ratio > 1 else (above, max(below, goal))
            wanted = max(least, goal / ratio)
            # steps of tiles make measured time jump: between two goals known on both sides, halve
            goal = wanted if below < wanted < above else (above + below) / 2
            if above - below < 0.005 * dense:
                break
        assert best is not None
        return best[1], best[2]

    def plain(self) -> dict[str, Any]:
        """For a report: shares of the dense network's time, and milliseconds where they were measured."""
        reading = self.reading
        measured = reading.share if reading is not None else None
        return {
            "device": self.device.name,
            "runtime": self.runtime,
            "batch": self.budget.batch,
            "asked": self.share,
            "predicted": self.predicted,
            "measured": measured,
            "dense_ms": reading.dense_ms if reading is not None else None,
            "compressed_ms": reading.small_ms if reading is not None else None,
            "missed": measured / self.share - 1 if measured is not None else None,
            "met": abs(measured / self.share - 1) <= MET if measured is not None else None,
            "reason": self.reason,
        }
