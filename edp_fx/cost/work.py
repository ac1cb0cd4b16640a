"""What one launch of a runtime has to do, as a function of what is kept: for a device to say how long it takes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edp_fx.channels.counts import AxisCount

CONVOLUTION, MATRICES, DEPTHWISE, GROUPED, MEMORY = "convolution", "matrices", "depthwise", "grouped", "memory"


@dataclass(frozen=True, eq=False)
class Size:
    """How many numbers: ``constant`` times the living indices along each axis."""

    constant: float
    axes: tuple[AxisCount, ...] = ()


@dataclass(frozen=True, eq=False)
class Work:
    """Beside the multiply-accumulates of its term, what a launch reads and writes.

    Attributes:
        family: a ``convolution``, a product of ``matrices``, a ``depthwise`` or ``grouped`` convolution, or ``memory``
            where nothing is multiplied that counts.
        given: what it reads first: a layer's input.
        weight: the layer's own numbers.
        made: what it writes.
        beside: what else it reads, such as the other operand of an addition fused into it.
        taps: kernel positions of a convolution; 1 for other products.
        groups: of a convolution.
        queries: positions that ask, of the first product of attention in one launch; 0 for others.
        launches: how many it is; 0 where another term of the same launch counts it.
    """

    family: str
    given: tuple[Size, ...] = ()
    weight: tuple[Size, ...] = ()
    made: tuple[Size, ...] = ()
    beside: tuple[Size, ...] = ()
    taps: float = 1.0
    groups: float = 1.0
    queries: float = 0.0
    launches: float = 1.0

    @property
    def traffic(self) -> tuple[Size, ...]:
        """All that is read and written."""
        return (*self.given, *self.weight, *self.made, *self.beside)

    def merged(self, coefficient: Work, inputs: AxisCount, outputs: AxisCount) -> Work:
        """A pair as one layer: this, the basis, and ``coefficient``."""
        weight = (Size(self.taps / self.groups, (inputs, outputs)),)
        return replace(self, weight=weight, made=coefficient.made, beside=coefficient.beside)

    def separated(self, inputs: AxisCount, outputs: AxisCount, positions: float) -> tuple[Work, Work]:
        """One layer as a depthwise and a pointwise one; ``positions`` of its output."""
        between = (Size(positions, (inputs,)),)
        depthwise = replace(self, family=DEPTHWISE, weight=(Size(self.taps, (inputs,)),), made=between, beside=())
        pointwise = replace(self, given=between, weight=(Size(1.0, (inputs, outputs)),), taps=1.0)
        return depthwise, pointwise
