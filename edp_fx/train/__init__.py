"""Training to a budget: the compressor for any loop, and a ready loop."""

from __future__ import annotations

from edp_fx.train.budget import Budget
from edp_fx.train.compressor import Compressor
from edp_fx.train.evaluate import Score, evaluate
from edp_fx.train.importance import Importance
from edp_fx.train.kinds import DEFAULT_KINDS, KINDS
from edp_fx.train.optimizer import parameter_groups
from edp_fx.train.progress import RichWatcher, Silent, Watcher
from edp_fx.train.proximal import Strength
from edp_fx.train.recipe import Recipe
from edp_fx.train.schedule import Schedule
from edp_fx.train.trainer import Outcome, Trainer

__all__ = [
    "DEFAULT_KINDS",
    "KINDS",
    "Budget",
    "Compressor",
    "Importance",
    "Outcome",
    "Recipe",
    "RichWatcher",
    "Schedule",
    "Score",
    "Silent",
    "Strength",
    "Trainer",
    "Watcher",
    "evaluate",
    "parameter_groups",
]
