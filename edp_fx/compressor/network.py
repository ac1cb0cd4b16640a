"""The network that trains, in its two forms: fused for speed, explicit for analysis and the passes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import fx

from edp_fx.channels import ChannelGraph
from edp_fx.compressor.comparing import Modes
from edp_fx.compressor.kinds import KINDS
from edp_fx.compressor.kinds.base import Applied, Flags, Removable, Rewrite
from edp_fx.passes.fuse import FusePairs, UnfusePairs
from edp_fx.passes.merge import Chooser, MergePairs


class Network:
    """A graph module that is changed in place, and copies that follow it.

    Args:
        gm: a graph, which is explicit from now on until :meth:`fuse`: every pair as its two layers.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm = gm
        self._explicit = UnfusePairs()(gm).graph_module.graph
        self._followers: list[fx.GraphModule] = []

    def fuse(self) -> None:
        """Every pair as one layer, the form in which it trains."""
        _fuse(self.gm)

    def follow(self, module: fx.GraphModule) -> None:
        """Let a copy of the network change shape along with it."""
        module.graph = copy.deepcopy(self._explicit)
        self._followers.append(_fuse(module))

    def unfuse(self) -> None:
        """The explicit form again."""
        modes = Modes(self.gm)
        self.gm.graph = self._explicit
        modes.restore(self.gm)

    @contextmanager
    def reduced(
        self, graph: ChannelGraph, removed: Mapping[Removable, Flags], keep_pair: Chooser | None
    ) -> Iterator[Applied]:
        """Take elements out of the network and its followers; within it the network is explicit.

        Args:
            graph: the analysis of the network as it is.
            removed: groups of which elements go, and which of them stay.
            keep_pair: (name, pair) -> whether a pruned pair is to stay two layers; all stay where None.

        Yields:
            What was changed, of all kinds together.
        """
        for follower in self._followers:
            modes = Modes(follower)
            _reduce(follower, copy.deepcopy(self._explicit), graph, removed, keep_pair)
            _fuse(follower)
            modes.restore(follower)
        modes = Modes(self.gm)
        applied = _reduce(self.gm, self._explicit, graph, removed, keep_pair)
        self._explicit = self.gm.graph
        yield applied
        self.fuse()
        modes.restore(self.gm)


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
