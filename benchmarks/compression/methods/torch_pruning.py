"""Torch-Pruning 1.6.1 (Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023) by its public interface."""

from __future__ import annotations

from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from benchmarks.compression.loop import fit
from benchmarks.compression.trial import Trial
from edp_fx.errors import BudgetError

# Its CIFAR script's 5e-4 acts for ten times as many steps
SPARSE_LEARNING = 2e-3
PARTS = 500  # of the way to nothing left: what one call of the pruner removes


def group_norm(trial: Trial) -> nn.Module:
    """Sparse learning for half of the steps, pruned once, trained on."""
    model = trial.network()
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    pruner = torch_pruning.pruner.GroupNormPruner(
        model, trial.example, importance, reg=SPARSE_LEARNING, **options(model, trial)
    )
    return sparse_then_pruned(model, pruner, trial)


def taylor(trial: Trial, blocks: bool = False) -> nn.Module:
    """Pruned by |weight x gradient| at the steps, and to the costs, of the schedule that EDP has, too; where asked,
    in its blocks of channels."""
    model = trial.network()
    importance = torch_pruning.importance.GroupTaylorImportance()
    pruner = torch_pruning.pruner.BasePruner(
        model, trial.example, importance, round_to=trial.method.align if blocks else None, **options(model, trial)
    )
    schedule, pruned = trial.schedule, Pruned(model, pruner, trial)
    gradients: dict[nn.Parameter, Tensor] = {}

    @torch.no_grad()
    def after_step(step: int) -> nn.Module | None:
        if step > schedule.stop:
            return None
        for parameter in model.parameters():
            if parameter.grad is not None:
                gradients[parameter] = gradients.get(parameter, 0) + parameter.grad
        if not (schedule.decides(step) or step == schedule.stop):
            return None
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        gradients.clear()
        goal = trial.dense.macs + (trial.goal - trial.dense.macs) * schedule.progress(step)
        pruned.shrink(goal)
        return model

    return fit(model, trial, after_step=after_step)


def sparse_then_pruned(model: nn.Module, pruner: Any, trial: Trial) -> nn.Module:
    """The pruner's penalty until half of the steps, then its pruning."""
    pruned = Pruned(model, pruner, trial)

    def regularise(step: int) -> None:
        if step <= trial.steps // 2:
            pruner.regularize(model)

    def after_step(step: int) -> nn.Module | None:
        if step != trial.steps // 2:
            return None
        pruned.shrink(trial.goal)
        return model

    return fit(model, trial, regularise=regularise, after_step=after_step)


class Pruned:
    """A network and its pruner, with the MACs of its layers from the numbers of their weights.

    Args:
        model: pruned in place.
        pruner: one of Torch-Pruning's.
        trial: the setting.
    """

    def __init__(self, model: nn.Module, pruner: Any, trial: Trial) -> None:
        self.model, self.pruner, self.trial = model, pruner, trial
        self.positions: dict[nn.Module, int] = {}
        layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
        hooks = [layer.register_forward_hook(self._see) for layer in layers]
        with torch.no_grad():
            model.eval()(trial.example)
        for hook in hooks:
            hook.remove()

    def _see(self, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        self.positions[layer] = output[0, 0].numel()

    def macs(self) -> int:
        """Multiply-accumulates of one image in convolutions and linear layers."""
        return sum(positions * layer.weight.numel() for layer, positions in self.positions.items())

    def shrink(self, goal: float) -> None:
        """Let the pruner remove channels, all over the network, until it costs at most ``goal`` MACs."""
        for _ in range(PARTS):
            if self.macs() <= goal:
                return
            self.pruner.step()
        raise BudgetError(f"{self.trial.task}: Torch-Pruning cannot reach it")


def options(model: nn.Module, trial: Trial) -> dict[str, Any]:
    """Global ranking; the classifier's outputs stay, and at least 15 % of every layer, as in EDP."""
    heads = [module for module in model.modules() if trial.is_head(module)]
    return {
        "global_pruning": True,
        "pruning_ratio": 1.0,
        "max_pruning_ratio": 0.85,
        "iterative_steps": PARTS,
        "ignored_layers": heads,
    }
