"""The network that trains, in its two forms: fused for speed, explicit for analysis and the passes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, fx

from edp_fx.channels import ChannelGraph
from edp_fx.compressor.kinds import KINDS
from edp_fx.compressor.kinds.base import Applied, Flags, Removable, Rewrite
from edp_fx.compressor.modes import Modes
from edp_fx.errors import RemovalError
from edp_fx.inputs import copied
from edp_fx.passes.fuse import FusePairs, UnfusePairs
from edp_fx.passes.merge import Chooser, MergePairs
from edp_fx.validation.samples import first_samples
from edp_fx.validation.validator import SINGLE, Before, blame

_MERGES = "merged pairs"


class Network:
    """A graph module that is changed in place, and copies that follow it.

    Args:
        gm: a graph, which is explicit from now on until :meth:`fuse`: every pair as its two layers.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm = gm
        self._explicit = UnfusePairs()(gm).graph_module.graph
        self._followers: list[fx.GraphModule] = []
        self.difference = 0.0  # relative, of the outputs by the last removal that was compared

    def dense(self) -> fx.GraphModule:
        """A copy in which every pair is one layer again, in eval mode."""
        gm = copied(self.gm)
        MergePairs(lambda name, pair: False)(gm)
        return gm.eval()

    def fuse(self) -> None:
        """Every pair as one layer, the form in which it trains."""
        _fuse(self.gm)

    def follow(self, module: fx.GraphModule) -> None:
        """Let a copy of the network change shape along with it."""
        module.graph = copy.deepcopy(self._explicit)
        self._followers.append(_fuse(module))

    def preview(
        self, graph: ChannelGraph, removed: Mapping[Removable, Flags], keep_pair: Chooser | None
    ) -> fx.GraphModule:
        """A copy of the network without what is removed, in eval mode; see :meth:`reduced`."""
        gm = copied(self.gm)
        _reduce(gm, copy.deepcopy(self._explicit), graph, removed, keep_pair)
        return gm.eval()

    def unfuse(self) -> None:
        """The explicit form again."""
        modes = Modes(self.gm)
        self.gm.graph = self._explicit
        modes.restore(self.gm)

    @contextmanager
    def reduced(
        self,
        graph: ChannelGraph,
        removed: Mapping[Removable, Flags],
        keep_pair: Chooser | None,
        inputs: Sequence[Tensor] | None = None,
    ) -> Iterator[Applied]:
        """Take elements out of the network and its followers; within it the network is explicit.

        Args:
            graph: the analysis of the network as it is.
            removed: groups of which elements go, and which of them stay.
            keep_pair: (name, pair) -> whether a pruned pair is to stay two layers; all stay where None.
            inputs: what the network must give the same for afterwards; not compared where None.

        Yields:
            What was changed, of all kinds together.

        Raises:
            RemovalError: it does not, beyond rounding; says what is to blame. The network is as it was.
        """
        modes = Modes(self.gm)
        explicit = copy.deepcopy(self._explicit)
        if inputs is None:
            applied = _reduce(self.gm, self._explicit, graph, removed, keep_pair)
        else:
            applied = self._compared(graph, removed, keep_pair, first_samples(inputs))
        self._explicit = self.gm.graph
        for follower in self._followers:
            following = Modes(follower)
            _reduce(follower, copy.deepcopy(explicit), graph, removed, keep_pair)
            _fuse(follower)
            following.restore(follower)
        yield applied
        self.fuse()
        modes.restore(self.gm)

    def _compared(
        self,
        graph: ChannelGraph,
        removed: Mapping[Removable, Flags],
        keep_pair: Chooser | None,
        inputs: Sequence[Tensor],
    ) -> Applied:
        explicit = copy.deepcopy(self._explicit)
        before = Before(self.gm, inputs)

        def change(network: fx.GraphModule, part: Sequence[Removable | str]) -> Applied:
            mine = {group: kept for group, kept in removed.items() if group in part}
            return _reduce(network, copy.deepcopy(explicit), graph, mine, keep_pair if _MERGES in part else None)

        pieces: list[Removable | str] = [*removed]
        if keep_pair is not None:
            pieces.append(_MERGES)
        try:
            applied = change(self.gm, pieces)
            self.difference = before.difference()
        except Exception:
            before.undo.restore()
            raise
        if self.difference <= SINGLE or not all(group.exact for group in removed):
            return applied
        before.undo.restore()
        guilty = blame(self.gm, inputs, pieces, change)
        if guilty:
            names = {
                one: one
                if isinstance(one, str)
                else f"the {one.kind} of {one.name}"
                if one.size == 1
                else f"{one.kind}s of {one.name}"
                for one in guilty
            }
            named = ", ".join(f"{names[one]} ({by:.1e})" for one, by in list(guilty.items())[:5])
            raise RemovalError(
                f"removing what is zero changed the outputs: {named}, relative; the network is as it was. "
                "Leave these kinds out with kinds=, and please report it"
            )
        return change(self.gm, pieces)  # rounding


def _fuse(gm: fx.GraphModule) -> fx.GraphModule:
    """The explicit graph stays as it was, node names and all."""
    gm.graph = copy.deepcopy(gm.graph)
    return FusePairs()(gm).graph_module


def _reduce(
    gm: fx.GraphModule,
    explicit: fx.Graph,
    graph: ChannelGraph,
    removed: Mapping[Removable, Flags],
    keep_pair: Chooser | None,
) -> Applied:
    gm.graph = explicit
    applied = Applied()
    by_rewrite: dict[Rewrite, dict[Removable, Flags]] = {kind.rewrite: {} for kind in KINDS.values()}
    for group, kept in removed.items():
        by_rewrite[KINDS[group.kind].rewrite][group] = kept
    for rewrite, mine in by_rewrite.items():
        if mine:
            applied.add(rewrite(gm, graph, mine))
    if keep_pair is not None:
        applied.reports.append(MergePairs(keep_pair)(gm).report)
    gm.meta["edp_fx.reports"] = [*gm.meta.get("edp_fx.reports", []), *applied.reports]
    return applied
