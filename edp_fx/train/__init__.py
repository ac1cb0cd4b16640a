"""The ready training loop: recipe, trainer, evaluation, progress."""

from __future__ import annotations

from edp_fx.train.distillation import Teacher
from edp_fx.train.evaluate import evaluate
from edp_fx.train.progress import RichWatcher, Silent, Watcher
from edp_fx.train.recipe import Recipe
from edp_fx.train.task import Score, Task
from edp_fx.train.trainer import Outcome, Trainer

__all__ = ["Outcome", "Recipe", "RichWatcher", "Score", "Silent", "Task", "Teacher", "Trainer", "Watcher", "evaluate"]
