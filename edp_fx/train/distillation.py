"""Learning from a network that knows more, in the same run."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edp_fx.leaves import sole
from edp_fx.train.precision import mixed_precision
from edp_fx.train.task import distance, floats


class Teacher:
    """A frozen copy of a network, in evaluation mode, and how much its softened distribution counts (Hinton et al.,
    "Distilling the knowledge in a neural network", 2015).

    On a GPU it multiplies in half precision: what it says counts as a distribution, not to the last digit. Elsewhere it
    multiplies in what the one that learns does.

    Args:
        network: of the outputs of the one that learns; left as it is.
        weight: of the teacher's part of the loss, in (0, 1].
        temperature: by which both logits are divided, above 0.
        classifies: whether the outputs are logits [N, classes].
    """

    def __init__(self, network: nn.Module, weight: float, temperature: float, classifies: bool = True) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.weight = weight
        self.temperature = temperature
        self.classifies = classifies

    def to(self, device: torch.device) -> Teacher:
        """Move it."""
        self.network.to(device)
        return self

    @torch.no_grad()
    def outputs(self, inputs: tuple[Tensor, ...]) -> Any:
        """What the teacher says of a batch of inputs [N, …], in float32."""
        on_gpu = inputs[0].device.type == "cuda"
        with mixed_precision("cuda", torch.bfloat16) if on_gpu else nullcontext():
            return floats(self.network(*inputs))

    def mixed(self, loss: Tensor, outputs: Any, inputs: tuple[Tensor, ...]) -> Tensor:
        """``loss`` and the distance of ``outputs`` from the teacher's, each by its weight.

        Of a classifier the outputs are logits [N, classes], and the distance is that of softened distributions; of
        another network it is :func:`~edp_fx.train.task.distance`.
        """
        said = self.outputs(inputs)
        if not self.classifies:
            return (1 - self.weight) * loss + self.weight * distance(outputs, said)
        warm = self.temperature
        apart = F.kl_div(
            F.log_softmax(sole(outputs) / warm, dim=1),
            F.log_softmax(sole(said) / warm, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return (1 - self.weight) * loss + self.weight * warm * warm * apart
