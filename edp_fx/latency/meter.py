"""``Meter``: what share of the dense network's time another takes, both timed in turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from edp_fx.errors import LoweringError
from edp_fx.inputs import normalize
from edp_fx.latency.runtimes import Runtime

Measured = TypeVar("Measured")
SECONDS = 4.0


@dataclass(frozen=True)
class Reading:
    """Two networks called in turns.

    Attributes:
        dense_ms, small_ms: medians of a call.
        share: of the dense network's time, the median over the turns: what else a machine does meanwhile is in both
            calls of a turn, so that readings scatter less than half as much as by the two medians.
    """

    dense_ms: float
    small_ms: float
    share: float

    @classmethod
    def of(cls, dense_ms: NDArray[np.float64] | float, small_ms: NDArray[np.float64] | float) -> Reading:
        """From the milliseconds of each turn."""
        dense, small = np.atleast_1d(dense_ms), np.atleast_1d(small_ms)
        return cls(float(np.median(dense)), float(np.median(small)), float(np.median(small / dense)))


class Meter:
    """Times networks against one.

    What slows the machine slows both, since they run in turns, so that their ratio is worth more than either time. In a
    distributed run rank 0 measures and the others take its numbers.

    Args:
        runtime: measures.
        batch: images a call.
        dense: the network to compare with; a copy is made ready when it is first timed.
        example_inputs: of any batch size; the first input's length is the batch.
        seconds: of timing for both together.
    """

    def __init__(
        self, runtime: Runtime, batch: int, dense: nn.Module, example_inputs: Any, seconds: float = SECONDS
    ) -> None:
        self.runtime, self.batch, self.seconds = runtime, batch, seconds
        self._dense, self._inputs = dense, batched(normalize(example_inputs), batch)
        self._call: Callable[[], Any] | None = None

    def dense_ms(self) -> float:
        """Milliseconds of the dense network alone.

        Raises:
            LoweringError: the runtime cannot take it.
        """
        return self._agreed(lambda: self.runtime.time(self._dense, self._inputs))

    def compare(self, network: nn.Module) -> Reading:
        """Time ``network`` and the dense one.

        Raises:
            LoweringError: the runtime cannot take one of them.
        """
        return self._agreed(lambda: self._compare(network))

    @staticmethod
    def _agreed(measure: Callable[[], Measured]) -> Measured:
        if not (distributed.is_available() and distributed.is_initialized()):
            return measure()
        told: list[Any] = [None]
        if distributed.get_rank() == 0:
            try:
                told = [measure()]
            except LoweringError as error:  # the others must not wait for a number
                told = [str(error)]
        distributed.broadcast_object_list(told, src=0)
        if isinstance(told[0], str):
            raise LoweringError(told[0])
        result: Measured = told[0]
        return result

    def _compare(self, network: nn.Module) -> Reading:
        from edp_fx.lowering.latency import in_turns

        ready = self.runtime.ready
        if ready is None:
            return Reading.of(self.runtime.time(self._dense, self._inputs), self.runtime.time(network, self._inputs))
        if self._call is None:
            self._call = ready(self._dense, self._inputs)
        calls = {"dense": self._call, "small": ready(network, self._inputs)}
        times = in_turns(calls, seconds=self.seconds, min_runs=15, max_runs=400, warmup=2, clock=self.runtime.clock)
        return Reading.of(times["dense"], times["small"])


def batched(inputs: tuple[Tensor, ...], batch: int) -> tuple[Tensor, ...]:
    """The inputs with ``batch`` rows, repeated where there are fewer."""
    rows = inputs[0].shape[0] if inputs[0].dim() else 0
    index = torch.arange(batch) % max(1, rows)
    return tuple(x[index.to(x.device)] if x.dim() and x.shape[0] == rows else x for x in inputs)
