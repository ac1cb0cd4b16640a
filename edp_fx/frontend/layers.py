"""Modules that take the place of functions whose effect depends on train and eval mode."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DROPOUTS: dict[Any, type[nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}


class AttentionDropout(nn.Module):
    """``scaled_dot_product_attention`` whose dropout is on in train mode and off in eval mode.

    Args:
        p: probability of dropping an attention weight.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        """Attend; tensors are (..., heads, tokens, width), options are those of the function."""
        return F.scaled_dot_product_attention(query, key, value, dropout_p=self.p if self.training else 0.0, **options)

    def extra_repr(self) -> str:
        """The probability, for the module's printed form."""
        return f"p={self.p}"


class BatchNorm(nn.Module):
    """``batch_norm`` by the batch's statistics in train mode, by running ones in eval mode.

    Args:
        momentum: of the running statistics.
        eps: added to the variance.
    """

    def __init__(self, momentum: float, eps: float) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps

    def forward(
        self, x: Tensor, mean: Tensor | None, var: Tensor | None, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Normalise x [N, C, ...]; the others are [C]. In train mode the running mean and variance move."""
        by_batch = self.training or mean is None
        return F.batch_norm(x, mean, var, weight, bias, by_batch, self.momentum, self.eps)

    def extra_repr(self) -> str:
        """Momentum and eps, for the module's printed form."""
        return f"momentum={self.momentum}, eps={self.eps}"


class CustomFunction(nn.Module):
    """A ``torch.autograd.Function`` as a module, which copies, pickles and trains with the function's own backward.

    Args:
        function: the class that is applied.
    """

    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        """Apply the function to its own arguments."""
        return self.function.apply(*args)

    def extra_repr(self) -> str:
        """The function's name, for the module's printed form."""
        return self.function.__qualname__


class ModeSwitch(nn.Module):
    """A value of train mode in train mode, another in eval mode: what ``if self.training`` chooses between."""

    def forward(self, trained: Tensor, evaluated: Tensor) -> Tensor:
        """One of two tensors of the same shape. Without data both count: their channels are removed together."""
        if trained.is_meta:
            return trained + evaluated
        return trained if self.training else evaluated
