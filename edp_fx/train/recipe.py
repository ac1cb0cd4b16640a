"""How a network is trained: the numbers of a recipe, the optimiser and the learning rate they mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from edp_fx.compressor.optimizer import parameter_groups
from edp_fx.errors import EdpError, TrainingError
from edp_fx.settings import Settings, bounded

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # what multiplies in training
OPTIMIZERS = {"adamw": (2e-3, 0.05), "sgd": (0.1, 5e-4)}  # default learning rate and weight decay


@dataclass(frozen=True)
class Recipe(Settings):
    """One training stage.

    Args:
        epochs: passes over the training images; 0 for none.
        optimizer: ``adamw`` or ``sgd`` (Nesterov momentum 0.9).
        lr: peak learning rate; where None the optimiser's default, which is lower from trained weights.
        weight_decay: on matrices only, coefficient matrices excepted; the optimiser's default where None.
        warmup: share of the run in which the learning rate rises.
        label_smoothing: of the cross entropy.
        accumulate: batches per optimiser step.
        clip_grad: largest gradient norm; 0 for none.
        mixed_precision: ``fp32`` (none), ``bf16`` or ``fp16``.
        ema: decay of the exponential moving average that is kept as the result; 0 for none.
        seed: of the order of images, augmentation, dropout.
        deterministic: the same seed gives the same bits on a GPU, too, in steps that take up to a quarter longer
            (docs/benchmarks.md), where nothing was multiplied on it before edp_fx was imported. Without it only a
            processor's runs repeat.
        compiled: steps are compiled by torch, and on a GPU captured in CUDA graphs, anew for every shape that the
            network takes; needs a C++ compiler, and on a GPU Triton. Pays where there are many steps of little work.

    Raises:
        TrainingError: a value is out of range; names the field.
    """

    error: ClassVar[type[EdpError]] = TrainingError
    what: ClassVar[str] = "recipe"

    epochs: int = bounded(least=0)
    optimizer: str = bounded("adamw", choices=OPTIMIZERS)
    lr: float | None = bounded(None, above=0)
    weight_decay: float | None = bounded(None, least=0)
    warmup: float = bounded(0.2, least=0, below=1)
    label_smoothing: float = bounded(0.0, least=0, below=1)
    accumulate: int = bounded(1, least=1)
    clip_grad: float = bounded(5.0, least=0)
    mixed_precision: str = bounded("fp32", choices=PRECISIONS)
    ema: float = bounded(0.0, least=0, below=1)
    seed: int = bounded(0, least=0)
    deterministic: bool = True
    compiled: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """What is multiplied in."""
        return PRECISIONS[self.mixed_precision]

    @property
    def peak_lr(self) -> float:
        """The highest learning rate."""
        return OPTIMIZERS[self.optimizer][0] if self.lr is None else self.lr

    def tuning(self, share: float) -> Recipe:
        """The same at a share of the default learning rate, where none is given."""
        return self if self.lr is not None or share == 1 else self.changed(lr=share * self.peak_lr)

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


def seed_everything(seed: int, epoch: int, rank: int = 0) -> None:
    """Seed Python's, NumPy's and torch's generators as a function of (seed, epoch, rank) alone."""
    import random

    import numpy as np

    mixed = int(np.random.SeedSequence((seed, epoch, rank)).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def choose_epoch(epoch: int, *loaders: Any) -> None:
    """Let loaders that shuffle by the number of the epoch give that epoch's images."""
    for loader in loaders:
        for owner in (loader, getattr(loader, "sampler", None)):
            choose = getattr(owner, "set_epoch", None)
            if choose is not None:
                choose(epoch)
