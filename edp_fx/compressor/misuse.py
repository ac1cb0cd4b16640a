"""Wrong uses of a :class:`~edp_fx.compressor.Compressor`, each refused in a line that says what to do."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from edp_fx.compressor.importance import Importance
from edp_fx.errors import BudgetError, TrainingError
from edp_fx.inputs import require_graph
from edp_fx.pairs import Pair


def check_given(gm: Any, optimizer: Optimizer | None, total_steps: int) -> None:
    """Raise where a network is no graph, the optimiser is not of it, or the run has no sensible length."""
    require_graph(gm, "Compressor")
    if isinstance(total_steps, bool) or not isinstance(total_steps, int) or total_steps < 0:
        raise TrainingError(f"total_steps={total_steps}: give the number of optimiser steps of the run, from 0 on")
    if optimizer is None:
        return
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if known.isdisjoint(id(parameter) for parameter in gm.parameters()):
        raise TrainingError("the optimizer has no parameter of the network: make it of gm.parameters()")
    for name, module in gm.named_modules():
        mine = [one for one in module.parameters() if one.requires_grad] if isinstance(module, Pair) else []
        if not known.issuperset(map(id, mine)):
            raise TrainingError(f"the optimizer lacks parameters of the pair {name}: make it after edp_fx.insert")


def check_ready(importance: Importance) -> None:
    """Raise where an importance must have observed the network before."""
    if not importance.ready:
        raise BudgetError(
            f"the importance {type(importance).__name__.lower()} has not observed the network: it serves "
            "compress(..., epochs=0), which lets it; take another, or Reconstruction.of(gm, batches)"
        )


def unweighed(step: int) -> TrainingError:
    """All is to be decided after ``step`` steps, and nothing was seen of what an importance weighs by."""
    return TrainingError(
        f"no gradient was seen in {step} steps, so nothing says what matters: give the Compressor the optimizer, call "
        "optimizer.step() and compressor.step() after every backward pass, or take the importance norm"
    )


def check_over(count: int, end: int, total: int) -> None:
    """Raise where a run is ended before its schedule is."""
    if count < min(end, total):
        raise TrainingError(
            f"finish() after {count} of {total} steps: the budget is met in step {end}; call compressor.step() after "
            "every optimizer.step(), or make the Compressor with as many total_steps as there are"
        )
