"""Which parts of a network train and which evaluate, through a change of its shape."""

from __future__ import annotations

from torch import nn


class Modes:
    """Remembers which submodules were in training mode, by name."""

    def __init__(self, model: nn.Module) -> None:
        self.training = {name: module.training for name, module in model.named_modules()}

    def restore(self, model: nn.Module) -> None:
        """Set every submodule that still exists, and new ones like the root."""
        root = self.training.get("", True)
        for name, module in model.named_modules():
            module.training = self.training.get(name, root)
