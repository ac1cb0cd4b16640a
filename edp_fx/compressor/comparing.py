"""What a network gives before and after a change, as exactly as the device computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edp_fx.inputs import normalize
from edp_fx.leaves import tensors_of


class Modes:
    """Remembers which submodules were in training mode, by name."""

    def __init__(self, model: nn.Module) -> None:
        self.training = {name: module.training for name, module in model.named_modules()}

    def restore(self, model: nn.Module) -> None:
        """Set every submodule that still exists, and new ones like the root."""
        root = self.training.get("", True)
        for name, module in model.named_modules():
            module.training = self.training.get(name, root)


@contextmanager
def whole_float32() -> Iterator[None]:
    """Within it a GPU computes float32 as such; by themselves its convolutions, and where the user allows it its matrix
    products, round to TF32, layers of other widths by other kernels."""
    backends = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


@torch.no_grad()
def outputs(model: nn.Module, inputs: Sequence[Any]) -> list[Tensor]:
    """All tensors the model gives for ``inputs`` in evaluation mode, in whole float32; the mode is put back."""
    modes = Modes(model)
    model.eval()
    try:
        with whole_float32():
            result = model(*normalize(inputs, model))
    finally:
        modes.restore(model)
    return [leaf.detach().float() for leaf in tensors_of(result)]


def relative_difference(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Largest |a - b| over all outputs, relative to the largest |a| of its output."""
    worst = 0.0
    for a, b in zip(before, after, strict=True):
        scale = float(a.abs().max()) or 1.0
        worst = max(worst, float((a - b).abs().max()) / scale)
    return worst
