"""Accuracy of a model or an engine on labelled batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from edp_fx.errors import DataError, LoweringError
from edp_fx.lowering.profile import Range


@dataclass(frozen=True)
class Accuracy:
    """Share of images whose label is the first, or among the first five, of the scores; mean
    cross-entropy.
    """

    images: int
    top1: float
    top5: float
    loss: float


@torch.no_grad()
def accuracy(
    function: Callable[[Tensor], Any],
    loader: Iterable[Any],
    *,
    batch: Range | None = None,
    device: torch.device | None = None,
) -> Accuracy:
    """Run ``function`` on every (images, labels) of ``loader``; ``batch`` is what sizes it takes, if not all.

    Raises DataError where the loader is empty or the labels do not fit the scores, LoweringError where the
    scores are no (N, classes) tensor.
    """
    count, first, five, loss = 0, 0, 0, 0.0
    for images, labels in loader:
        given = images.to(device) if device is not None else images
        scores = _scores(function, given, batch).float().cpu()
        labels = labels.cpu()
        if scores.dim() != 2 or len(scores) != len(labels):
            raise LoweringError(f"scores of shape {tuple(scores.shape)} for {len(labels)} images: no classifier")
        if int(labels.max()) >= scores.shape[1]:
            raise DataError(f"label {int(labels.max())} for a model of {scores.shape[1]} classes: another data set?")
        ranks = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels[:, None]
        count += len(labels)
        first += int(ranks[:, 0].sum())
        five += int(ranks.any(dim=1).sum())
        loss += float(F.cross_entropy(scores, labels, reduction="sum"))
    if count == 0:
        raise DataError("the data set has no images in this split")
    return Accuracy(count, first / count, five / count, loss / count)


def _scores(function: Callable[[Tensor], Any], images: Tensor, batch: Range | None) -> Tensor:
    if batch is None:
        return function(images)
    parts = []
    for piece in images.split(batch.max):
        missing = batch.min - len(piece)
        padded = torch.cat([piece, piece[-1:].expand(missing, *piece.shape[1:])]) if missing > 0 else piece
        parts.append(function(padded)[: len(piece)].float().cpu())
    return torch.cat(parts)
