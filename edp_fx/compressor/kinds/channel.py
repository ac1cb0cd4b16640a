"""Channels: what layers make and read in common, in attention the same places in every head."""

from __future__ import annotations

from edp_fx.compressor.kinds.indexed import Indexed


class Channel(Indexed):
    """A channel less in every layer that shares it."""

    name = "channel"
    thins = True
