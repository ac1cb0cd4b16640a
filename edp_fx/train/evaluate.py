"""The metric and the mean loss of a network over a loader."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from edp_fx.inputs import device_of
from edp_fx.train.task import Judge, Score, Task, floats, input_names, placed, split


@torch.no_grad()
def evaluate(model: nn.Module, loader: Iterable[Any], task: Task | None = None, inputs: int | None = None) -> Score:
    """Metric and mean loss over batches, in evaluation mode, on the model's own device.

    Args:
        model: any whose outputs the task can judge; a classifier gives logits [N, classes].
        loader: batches, as :func:`~edp_fx.train.task.split` takes them; (images [N, C, H, W], labels [N]), say.
        task: what is judged; classes where None.
        inputs: how many inputs the model takes, where its signature does not say.

    Raises:
        TrainingError: a batch has another form, or the loss or the metric fails on the outputs.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    device = device_of(model) or torch.device("cpu")
    task = task or Task()
    judge, names = Judge(task), input_names(model, inputs)
    try:
        for batch in loader:
            given, targets = placed(split(batch, names), device)
            outputs = floats(model(*given))
            task.check(outputs, targets)
            judge.add(outputs, targets, len(given[0]))
    finally:
        for module, training in modes.items():
            module.training = training
    return judge.score()
