"""What batch norms normalise by after a run: as it moved, as they came with it, or of many images anew."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

STATISTICS = ("moving", "held", "anew")
BATCHES = 64  # that statistics anew are of


def norms_of(network: nn.Module) -> list[_BatchNorm]:
    """Its batch norms that have statistics."""
    norms = (module for module in network.modules() if isinstance(module, _BatchNorm))
    return [norm for norm in norms if norm.running_mean is not None]


def hold_statistics(network: nn.Module) -> None:
    """Let batch norms normalise by the statistics they have, until the network is put into training mode again."""
    for norm in norms_of(network):
        norm.eval()


@torch.no_grad()
def renew_statistics(network: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> None:
    """Make every batch norm's statistics the mean of the batches', in place, all else in evaluation mode.

    Those that training leaves are of its last ten batches or so, of weights that were still moving, and in the
    precision that it multiplied in.

    Args:
        network: left in evaluation mode.
        batches: its inputs, each [N, …] of several images, on its device; the first 64 are used.
    """
    network.eval()
    norms = norms_of(network)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all
        norm.train()
    for inputs in islice(batches, BATCHES):
        network(*inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()
