"""How a network is trained: the numbers of a recipe, the optimiser and the learning rate they mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer

from edp_fx.compressor.optimizer import parameter_groups
from edp_fx.errors import TrainingError

PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # what multiplies in training
OPTIMIZERS = {"adamw": (2e-3, 0.05), "sgd": (0.1, 5e-4)}  # default learning rate and weight decay


@dataclass(frozen=True)
class Recipe:
    """One training stage.

    Args:
        epochs: passes over the training images.
        optimizer: ``adamw`` or ``sgd`` (Nesterov momentum 0.9).
        lr: peak learning rate; the optimiser's default where None.
        weight_decay: on matrices only, coefficient matrices excepted; the optimiser's default where None.
        warmup: share of the run in which the learning rate rises.
        label_smoothing: of the cross entropy.
        accumulate: batches per optimiser step.
        clip_grad: largest gradient norm; 0 for none.
        precision: ``no`` (float32), ``bf16`` or ``fp16``.
        distill: weight of the teacher's part of the loss, where there is a teacher.
        temperature: of the distillation.
        ema: decay of the exponential moving average that is kept as the result; 0 for none.
        seed: of the order of images, augmentation, dropout.
        deterministic: the same seed gives the same bits on a GPU, too, in steps that take up to a quarter longer
            (docs/benchmarks.md), where nothing was multiplied on it before edp_fx was imported. Without it only a
            processor's runs repeat.
    """

    epochs: int
    optimizer: str = "adamw"
    lr: float | None = None
    weight_decay: float | None = None
    warmup: float = 0.2
    label_smoothing: float = 0.0
    accumulate: int = 1
    clip_grad: float = 5.0
    precision: str = "no"
    distill: float = 0.5
    temperature: float = 2.0
    ema: float = 0.0
    seed: int = 0
    deterministic: bool = True

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise TrainingError(f"optimizer {self.optimizer!r}: unknown; take one of {', '.join(OPTIMIZERS)}")
        if self.precision not in PRECISIONS:
            raise TrainingError(f"precision {self.precision!r}: unknown; take one of {', '.join(PRECISIONS)}")
        if self.epochs < 0 or self.accumulate < 1:
            raise TrainingError("epochs must not be negative and accumulate at least 1")

    @property
    def peak_lr(self) -> float:
        """The highest learning rate."""
        return OPTIMIZERS[self.optimizer][0] if self.lr is None else self.lr

    def make_optimizer(self, model: nn.Module) -> Optimizer:
        """The optimiser over ``model``'s parameters, in groups with and without weight decay."""
        decay = OPTIMIZERS[self.optimizer][1] if self.weight_decay is None else self.weight_decay
        groups = parameter_groups(model, decay)
        if self.optimizer == "sgd":
            return SGD(groups, lr=self.peak_lr, momentum=0.9, nesterov=True)
        return AdamW(groups, lr=self.peak_lr)

    def lr_at(self, step: int, total: int) -> float:
        """Learning rate of optimiser step ``step`` (0-based) of ``total``: a line up, half a cosine down to
        0."""
        rise = max(1, round(self.warmup * total))
        if step < rise:
            return self.peak_lr * (step + 1) / rise
        return self.peak_lr * 0.5 * (1 + math.cos(math.pi * (step + 1 - rise) / max(1, total - rise)))

    def loss(self, logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None) -> Tensor:
        """Cross entropy, mixed with the teacher's softened distribution (Hinton et al., 2015) where given."""
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if teacher_logits is None:
            return loss
        warm = self.temperature
        soft = F.kl_div(
            F.log_softmax(logits / warm, dim=1),
            F.log_softmax(teacher_logits / warm, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return (1 - self.distill) * loss + self.distill * warm * warm * soft


def seed_everything(seed: int, epoch: int, rank: int = 0) -> None:
    """Seed Python's, NumPy's and torch's generators as a function of (seed, epoch, rank) alone."""
    import random

    import numpy as np

    mixed = int(np.random.SeedSequence((seed, epoch, rank)).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values."""
    from dataclasses import asdict

    return asdict(recipe)
