"""What a network computes, operation by operation: which values each reads and writes, and how large those are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from edp_fx.channels.atoms import Where
from edp_fx.channels.labels import Labels
from edp_fx.channels.rules.normalise import batch_norm
from edp_fx.channels.rules.registry import Operation
from edp_fx.channels.rules.reshape import restride, view

COPIES = ("aten.clone.", "aten._to_copy.", "aten.contiguous.")
VIEW, POINTWISE, NORM, PRODUCT, OTHER = "view", "pointwise", "norm", "product", "other"


@dataclass(eq=False, slots=True)
class Value:
    """A tensor of the run.

    Attributes:
        shape: on the example inputs.
        labels: of its indices.
        constant: whether it is a parameter, or made of such alone: a runtime computes it once.
        floating: whether it holds floating-point numbers.
        source: number of the value that it shows, itself where it is no view.
    """

    shape: tuple[int, ...]
    labels: Labels
    constant: bool
    floating: bool
    source: int


@dataclass(eq=False, slots=True)
class Call:
    """An ATen operation as it ran once.

    Attributes:
        where: at which graph node, and its name.
        family: ``view`` moves nothing, ``pointwise`` computes each number by itself, ``norm`` scales and shifts
            channels by numbers known before (batch norm), ``product`` multiplies and accumulates, ``other`` does
            anything else with its numbers.
        reads, writes: numbers of values.
        sites: positions of what it multiplies and accumulates, among those of the run.
        taps: kernel positions of a convolution, 1 otherwise.
        inputs: channels each output of a convolution is made of; 0 for what is none.
        groups: of a convolution, 1 otherwise.
    """

    where: Where
    family: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    sites: range
    taps: int = 1
    inputs: int = 0
    groups: int = 1


class Calls:
    """The operations of a run in their order, and the values between them."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.values: list[Value] = []
        self._numbers: dict[int, tuple[Tensor, int]] = {}  # by id, which the tensor beside keeps its own

    def born(self, tensor: Tensor, labels: Labels) -> None:
        """A parameter or buffer."""
        self._value(tensor, labels, constant=True)

    def given(self, tensor: Tensor) -> None:
        """An input of the network."""
        self._value(tensor, (), constant=False)

    def ran(
        self,
        where: Where,
        known: Operation,
        args: Sequence[Any],
        results: Sequence[tuple[Tensor, Labels]],
        operands: Sequence[Tensor],
        sites: range,
    ) -> None:
        """An operation of ``args`` gave ``results``; ``sites`` are what it multiplied."""
        reads = tuple([self._number(one) for one in operands])
        constant = all([self.values[number].constant for number in reads])
        family = _family(known, sites)
        source = self.values[reads[0]].source if family == VIEW and reads else None
        writes = tuple([self._value(one, labels, constant, source) for one, labels in results])
        if constant or not results or family == VIEW:
            return
        call = Call(where, family, reads, writes, sites)
        if family == PRODUCT and len(args) == 9:  # aten.convolution
            weight = self.values[reads[1]].shape
            call.taps, call.groups = math.prod(weight[2:]), int(args[8])
            call.inputs = weight[0] // call.groups if args[6] else weight[1]
        self.calls.append(call)

    def forget_tensors(self) -> None:
        """After the run."""
        self._numbers.clear()

    def _number(self, tensor: Tensor) -> int:
        known = self._numbers.get(id(tensor))
        return known[1] if known is not None else self._value(tensor, (), constant=True)

    def _value(self, tensor: Tensor, labels: Labels, constant: bool, source: int | None = None) -> int:
        number = len(self.values)
        floating = tensor.is_floating_point()
        self.values.append(Value(tensor.shape, labels, constant, floating, number if source is None else source))
        self._numbers[id(tensor)] = (tensor, number)
        return number


def _family(known: Operation, sites: range) -> str:
    if known.alias or known.rule is restride or (known.rule is view and not known.name.startswith(COPIES)):
        return VIEW
    if sites:
        return PRODUCT
    if known.rule is batch_norm:
        return NORM
    return POINTWISE if known.pointwise else OTHER
