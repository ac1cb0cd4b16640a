"""Learning from a network that knows more, in the same run."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edp_fx.train.precision import mixed_precision


class Teacher:
    """A frozen copy of a network, in evaluation mode, and how much its softened distribution counts (Hinton et al.,
    "Distilling the knowledge in a neural network", 2015).

    On a GPU it multiplies in half precision: what it says counts as a distribution, not to the last digit.

    Args:
        network: gives logits [N, classes]; left as it is.
        weight: of the teacher's part of the loss, in (0, 1].
        temperature: by which both logits are divided, above 0.
    """

    def __init__(self, network: nn.Module, weight: float, temperature: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.weight = weight
        self.temperature = temperature

    def to(self, device: torch.device) -> Teacher:
        """Move it."""
        self.network.to(device)
        return self

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """What the teacher says of images [N, C, H, W], in float32."""
        half = images.device.type == "cuda"
        with mixed_precision(images.device.type, torch.bfloat16 if half else torch.float32):
            return self.network(images).float()

    def mixed(self, loss: Tensor, logits: Tensor, images: Tensor) -> Tensor:
        """``loss`` and the distance of ``logits`` [N, classes] from the teacher's, each by its weight."""
        warm = self.temperature
        distance = F.kl_div(
            F.log_softmax(logits / warm, dim=1),
            F.log_softmax(self.logits(images) / warm, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return (1 - self.weight) * loss + self.weight * warm * warm * distance
