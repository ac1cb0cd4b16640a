"""The compressor for any training loop: what may go, what that saves, when and how it goes."""

from __future__ import annotations

from edp_fx.compressor.budget import Budget
from edp_fx.compressor.compressor import Compressor
from edp_fx.compressor.importance import Importance
from edp_fx.compressor.kinds import KINDS, register_kind
from edp_fx.compressor.method import PRESETS, Method
from edp_fx.compressor.optimizer import parameter_groups
from edp_fx.compressor.schedule import Schedule

__all__ = [
    "KINDS",
    "PRESETS",
    "Budget",
    "Compressor",
    "Importance",
    "Method",
    "Schedule",
    "parameter_groups",
    "register_kind",
]
