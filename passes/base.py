"""The one shape every graph pass has, and the manager that runs a sequence of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import fx

from edp_fx.errors import PassError, one_line
from edp_fx.inputs import require_graph
from edp_fx.refusal import Refusal


@dataclass
class PassReport:
    """What a pass did: every node rewritten, every node refused with its reason, and figures by name."""

    name: str
    rewritten: list[str] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def refuse(self, node: str, reason: str) -> None:
        """Record that ``node`` was left as it was."""
        self.refused.append(Refusal(node, reason))


@dataclass(frozen=True)
class PassResult:
    """The graph after a pass. ``modified`` is False when the graph is equal to the one given."""

    graph_module: fx.GraphModule
    modified: bool
    report: PassReport


@dataclass(frozen=True)
class Pass(ABC):
    """A graph transformation: a frozen dataclass whose fields are its options.

    ``requires`` checks the graph before, ``call`` transforms it, ``ensures`` checks the *result*. The first and
    the last raise :class:`~edp_fx.errors.PassError`, naming the node.

    A pass with ``preserves`` promises the same function in evaluation mode. :class:`edp_fx.validation.Validator` holds
    it to that, piece by piece (what :attr:`PassReport.rewritten` names), so such a pass puts new tensors into the
    places of old ones instead of writing into these, and leaves alone the pieces named in ``leave``.

    Attributes:
        leave: pieces that stay as they are, and why.
    """

    name: ClassVar[str]
    preserves: ClassVar[bool] = False
    leave: Mapping[str, str] = field(default_factory=dict, kw_only=True)

    def leaves(self, piece: str, report: PassReport) -> bool:
        """Whether a piece is to stay as it is, which the report then says."""
        if piece in self.leave:
            report.refuse(piece, self.leave[piece])
        return piece in self.leave

    def pieces(self, report: PassReport) -> list[str]:
        """What can be left out by itself of what ``report`` says was done."""
        return report.rewritten

    @abstractmethod
    def requires(self, gm: fx.GraphModule) -> None:
        """Raise PassError where ``gm`` is not what the pass works on."""

    @abstractmethod
    def call(self, gm: fx.GraphModule) -> PassResult:
        """Transform ``gm``. Passes change the module they are given; copy first to keep the original."""

    @abstractmethod
    def ensures(self, result: PassResult) -> None:
        """Raise PassError where the result breaks what the pass promises."""

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        check_graph(gm, self.name)
        self.requires(gm)
        result = self.call(gm)
        check_graph(result.graph_module, self.name)
        self.ensures(result)
        return result


def check_graph(gm: fx.GraphModule, name: str) -> None:
    """Raise PassError, naming the node, where the graph is not well formed or calls a module that is not there."""
    require_graph(gm, name)
    try:
        gm.graph.lint()
    except (RuntimeError, ValueError) as error:
        raise PassError(f"{name}: {one_line(error)}") from error


@dataclass(frozen=True)
class PassManager:
    """Runs passes in order, each on the result of the one before."""

    passes: tuple[Pass, ...]

    def __init__(self, passes: Iterable[Pass]) -> None:
        object.__setattr__(self, "passes", tuple(passes))

    def __call__(self, gm: fx.GraphModule) -> tuple[fx.GraphModule, list[PassReport]]:
        reports = []
        for one in self.passes:
            result = one(gm)
            gm = result.graph_module
            reports.append(result.report)
        return gm, reports
