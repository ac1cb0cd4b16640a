"""Accuracy and mean loss over a loader."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from edp_fx.inputs import device_of


@dataclass(frozen=True)
class Score:
    """Top-1 accuracy in [0, 1], mean cross entropy, and over how many images."""

    accuracy: float
    loss: float
    images: int


@torch.no_grad()
def evaluate(model: nn.Module, loader: Iterable[Any]) -> Score:
    """Top-1 accuracy of a classifier over batches of (images [N, C, H, W], labels [N]), in evaluation mode, on the
    model's own device.

    Args:
        model: gives logits [N, classes].
        loader: batches.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    device = device_of(model) or torch.device("cpu")
    total = torch.zeros(3, dtype=torch.float64, device=device)
    try:
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            logits = model(images).float()
            total[0] += (logits.argmax(1) == labels).sum()
            total[1] += F.cross_entropy(logits, labels, reduction="sum")
            total[2] += len(labels)
    finally:
        for module, training in modes.items():
            module.training = training
    right, loss, count = total.tolist()
    return Score(right / max(count, 1), loss / max(count, 1), int(count))
