"""The one training loop of all methods: SGD, one learning-rate cycle over all steps, also across a pruning."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from benchmarks.compression.trial import Trial
from edp_fx.errors import TrainingError
from edp_fx.train.precision import mixed_precision
from edp_fx.train.recipe import choose_epoch, seed_everything
from edp_fx.train.task import floats

LAYOUT = torch.channels_last  # twice as fast as the other on depthwise layers, and never slower


def fit(
    model: nn.Module,
    trial: Trial,
    *,
    optimizer: Optimizer | None = None,
    regularise: Callable[[int], None] | None = None,
    after_step: Callable[[int], nn.Module | None] | None = None,
) -> nn.Module:
    """Train for the trial's epochs.

    Args:
        model: trained in place.
        trial: the setting.
        optimizer: one that follows the network by itself when it changes; made here, and made anew at every
            change, where None.
        regularise: given the number of the step (from 1), adds to the gradients before the step.
        after_step: given the same number, may change the network; returns it where its parameters changed. The
            gradients of the step are still there.

    Returns:
        The network as the last change left it.
    """
    follows = optimizer is not None
    recipe, device = trial.recipe, "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device, memory_format=LAYOUT)
    teacher = None if trial.teacher is None else trial.teacher.to(torch.device(device))
    optimizer = optimizer or recipe.make_optimizer(model)
    loss_sum, step = torch.zeros((), device=device), 0
    for epoch in range(recipe.epochs):
        seed_everything(recipe.seed, epoch)
        choose_epoch(epoch, trial.train)
        model.train()
        for images, labels in trial.train:
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr_at(step, trial.steps)
            step += 1
            images = images.to(device, memory_format=LAYOUT)
            with mixed_precision(device, recipe.dtype):
                outputs = floats(model(images))
                loss = trial.loss(outputs, labels.to(device))
                if teacher is not None:
                    loss = teacher.mixed(loss, outputs, (images,))
            optimizer.zero_grad()
            loss.backward()
            if regularise is not None:
                regularise(step)
            clip_grad_norm_(model.parameters(), recipe.clip_grad)
            optimizer.step()
            loss_sum += loss.detach()
            changed = after_step(step) if after_step is not None else None
            if changed is not None:
                model = changed.to(device, memory_format=LAYOUT).train()
                if not follows:
                    optimizer = recipe.make_optimizer(model)
        if not bool(torch.isfinite(loss_sum)):
            raise TrainingError(f"{trial.task}: the loss is not finite in epoch {epoch + 1}")
    return model
