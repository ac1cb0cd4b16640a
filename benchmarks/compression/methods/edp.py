"""This library, as a user would add it to a loop of his own."""

from __future__ import annotations

from torch import nn

import edp_fx
from benchmarks.compression.loop import fit
from benchmarks.compression.trial import Trial
from edp_fx.compressor import Budget, Compressor

# λ for 4,690 steps of ResNet-20; what shrinks is about λ times steps. 9.5e-4 left 0.69 of the MACs, 1.5e-3 0.09 and no
# accuracy
STRENGTH, STRENGTH_STEPS = 1.2e-3, 4690


def edp(
    trial: Trial, kinds: tuple[str, ...] = ("channel", "kernel", "branch"), policy: str = "budget", blocks: bool = True
) -> nn.Module:
    """Pairs from the start where ranks may go, a :class:`Compressor`, one run."""
    gm = edp_fx.trace(trial.network(), trial.example)
    if "rank" in kinds:
        gm = edp_fx.insert(gm, start="identity")
    optimizer = trial.recipe.make_optimizer(gm)
    strength = STRENGTH * STRENGTH_STEPS / trial.steps
    compressor = Compressor(
        gm,
        trial.example,
        budget=Budget(macs=trial.task.target) if policy == "budget" else None,
        optimizer=optimizer,
        total_steps=trial.steps,
        start=trial.schedule.warmup,
        end=trial.schedule.end,
        decisions=trial.schedule.decisions,
        removals=trial.schedule.removals,
        kinds=kinds,
        align=trial.align if blocks else 1,
        policy=policy,
        **({"strength": strength} if policy == "lambda" else {}),
    )

    def after_step(step: int) -> nn.Module | None:
        return compressor.gm if compressor.step() else None

    fit(compressor.gm, trial, optimizer=optimizer, after_step=after_step)
    return compressor.finish()
