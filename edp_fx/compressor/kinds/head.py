"""Attention heads as a whole, with their queries, keys and values."""

from __future__ import annotations

from edp_fx.compressor.kinds.indexed import Indexed


class Head(Indexed):
    """A head less. Where heads may go attention loses those, and not also the same places in every head: both own the
    same parameters."""

    name = "head"
    offered = "named"
    why_not = "attention loses the same places in every head instead; name head to remove whole heads"
    heads = "whole"
    thins = True

    def block(self, size: int, align: int) -> int:
        """Single heads: what hardware wants aligned is their channels, which stay."""
        return 1

    def floor(self, least: float, size: int, align: int) -> int:
        """At least one."""
        return max(1, int(least))
