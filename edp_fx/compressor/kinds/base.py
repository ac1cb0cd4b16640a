"""What a kind of removal says of itself: all that the rest of the compressor knows about kinds.

A *group* holds *elements*, which are kept or removed one by one: the channels that layers share, the ranks of a pair,
or a single one, such as a residual branch. A kind finds its groups, says which parts of which parameters an element
owns, what removing it saves, and how the graph changes when it goes. A kind of your own: subclass :class:`Kind`, or
:class:`Whole` for groups of one element, and call :func:`edp_fx.compressor.register_kind`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx

from edp_fx.compressor.budget import METRICS
from edp_fx.compressor.removals import block_sizes

if TYPE_CHECKING:
    from edp_fx.channels import ChannelGraph
    from edp_fx.compressor.savings import Savings
    from edp_fx.cost.terms import Terms
    from edp_fx.passes.base import PassReport

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
KeptIndices = dict[str, dict[int, Indices]]
Place = tuple[str, int | None]  # a parameter and an axis of it
Rewrite = Callable[[fx.GraphModule, "ChannelGraph", Mapping["Removable", Flags]], "Applied"]
ROLES = ("producer", "consumer", "affine", "other")


class Removable(Protocol):
    """A group of elements that may go.

    Attributes:
        id: from 0 on for the groups of the analysis, below 0 for others; all differ.
        name: what messages call it: a layer or a graph node.
        kind: the name of its kind.
        size: how many elements it has.
        exact: whether the network computes the same without what is zero.
    """

    @property
    def id(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def exact(self) -> bool: ...


@dataclass(frozen=True, eq=False)
class Part:
    """What the elements of one group own of one parameter.

    Attributes:
        parameter: its name.
        axis: the axis whose indices they own, or None: all of the parameter is one index.
        owner: per index of the axis, the element of the group that owns it, -1 where none does.
        role: of :data:`ROLES` where all groups share the axis; any other word is the kind's own.
        weighed: whether gradients here say what the loss of an element costs.
        faded: whether this must be zero before an element goes.
        penalised: whether the group-sparse penalties apply.
        selection: of many parameters at once, what the elements own of each, shaped as it; all of it where None.
        each: weighed index by index instead of element by element, and the squares summed.
    """

    parameter: str
    axis: int | None
    owner: Indices
    role: str
    weighed: bool = True
    faded: bool = True
    penalised: bool = False
    selection: Callable[[Sequence[Tensor]], list[Tensor]] | None = None
    each: bool = False


@dataclass
class Applied:
    """What a removal changed, for all that follows the network: optimiser, averages, a resumed run.

    Attributes:
        reports: of the passes.
        kept: per parameter and axis, the indices that stayed.
        moved: a new parameter and an axis of it -> where the same indices were before.
        undecayed: new parameters that join the optimiser's group without weight decay where there is one.
    """

    reports: list[PassReport] = field(default_factory=list)
    kept: KeptIndices = field(default_factory=dict)
    moved: dict[Place, Place] = field(default_factory=dict)
    undecayed: set[str] = field(default_factory=set)

    def add(self, other: Applied) -> None:
        """Take in what was changed next."""
        self.reports += other.reports
        self.moved |= other.moved
        self.undecayed |= other.undecayed
        for name, axes in other.kept.items():
            self.kept[name] = {**self.kept.get(name, {}), **axes}

    @property
    def origins(self) -> dict[str, str]:
        """New parameter -> the one it was made from, the first that is named."""
        found: dict[str, str] = {}
        for (new, _), (old, _) in self.moved.items():
            found.setdefault(new, old)
        return found


class Kind(ABC):
    """A kind of removal.

    Attributes:
        name: what a method calls it.
        offered: ``always``, or only ``in need`` (where the others cannot reach the budget) or where ``named``.
        why_not: the reason a run gives that leaves it out though it could go.
        metrics: the budgets it serves.
        penalties: whether it goes by group-sparse penalties (the policy ``lambda``), too.
        by_gradients: whether only gradients weigh it, so that it goes in training only.
        heads: how the analysis looks at attention heads, see :func:`edp_fx.analyze`.
        thins: whether removing one makes layers thinner. Such elements are priced at the widths the network had as it
            came: at present widths the thinner of two factors of a product is the cheaper to thin, and greedy choice
            runs into wide streams between starved layers.
        pays_by_width: whether an element pays or not by the widths there are: then all is priced at those.
        forms: what a layer has become after such a removal -> the part of it that makes its outputs.
        rewrite: takes groups (with what is kept of each) out of a graph; kinds with the very same one go together.
    """

    name: ClassVar[str]
    offered: ClassVar[str] = "always"
    why_not: ClassVar[str] = "it goes only where a method names it"
    metrics: ClassVar[Collection[str]] = METRICS
    penalties: ClassVar[bool] = False
    by_gradients: ClassVar[bool] = False
    heads: ClassVar[str] = "dims"
    thins: ClassVar[bool] = False
    pays_by_width: ClassVar[bool] = False
    forms: ClassVar[Mapping[str, str]] = MappingProxyType({})

    @abstractmethod
    def find(self, gm: fx.GraphModule, graph: ChannelGraph, first_id: int) -> Sequence[Removable]:
        """The groups of an explicit graph, analysed, that may go; those the analysis does not number have ids from
        ``first_id`` down."""

    @abstractmethod
    def parts(self, group: Removable, parameters: Collection[str]) -> Iterable[Part]:
        """What its elements own of these parameters."""

    @abstractmethod
    def weighed_by(self, group: Removable) -> Collection[str]:
        """Parameters whose gradients weigh it."""

    @staticmethod
    @abstractmethod
    def rewrite(gm: fx.GraphModule, graph: ChannelGraph, removed: Mapping[Removable, Flags]) -> Applied:
        """Take out of ``gm``, explicit and analysed as ``graph``, what is not kept."""

    def readers(self, group: Removable, parameters: Collection[str]) -> Iterable[Part]:
        """The parts by which layers read its elements (axis 1 of a weight), which without training make up for what
        goes by what stays: none where the removal changes the layers themselves."""
        return ()

    def cost(self, terms: Terms, groups: Sequence[Removable], metric: str) -> Terms:
        """``terms`` of a network's cost as these groups change them, beside the indices they leave on axes."""
        return terms

    def prices(self, savings: Savings, group: int, losses: Floats, ends: Indices) -> Floats:
        """Loss per cost saved of each block of a group's elements, least important first.

        Args:
            savings: what elements save.
            group: position of the group.
            losses: of each block.
            ends: number of elements in this and the blocks before it.
        """
        return ratio(losses / block_sizes(ends), savings.of_one(group))

    def block(self, size: int, align: int) -> int:
        """How many elements of a group of ``size`` go together."""
        return align if size > align else 1

    def floor(self, least: float, size: int, align: int) -> int:
        """The fewest elements that stay of a group of ``size``, at least ``least`` where it keeps any."""
        fewest, block = max(1, int(least)), self.block(size, align)
        return fewest if size <= align else min(size, -(-fewest // block) * block)


class Whole(Kind):
    """A kind whose groups are one element that may go: it has no floor and is weighed by gradients only."""

    by_gradients = True

    def floor(self, least: float, size: int, align: int) -> int:
        """None."""
        return 0


def ratio(losses: Floats, saved: float) -> Floats:
    """Loss per cost; what saves nothing is never worth it."""
    return losses / saved if saved > 0 else np.full(len(losses), np.inf)
