"""The channel-dependency analysis: which channels of a network must go together, and why."""

from edp_fx.channels.analyze import analyze
from edp_fx.channels.graph import ChannelGraph
from edp_fx.channels.groups import Group, Member

__all__ = ["ChannelGraph", "Group", "Member", "analyze"]
