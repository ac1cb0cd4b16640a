"""First and second moments of numbers seen batch by batch, in double precision."""

from __future__ import annotations

import torch
from torch import Tensor

PRODUCTS = 1e10  # multiply-accumulates that moments may take
SAMPLES = 20  # positions a feature that are seen at least, where there are as many


class Moments:
    """Of inputs x [positions, n] and what is to be predicted from them, y [positions, m]."""

    def __init__(self) -> None:
        self.count = 0
        self.batches = 0
        self._between: Tensor | float = 0.0
        self._x: Tensor | float = 0.0
        self._y: Tensor | float = 0.0
        self._xx: Tensor | float = 0.0
        self._yx: Tensor | float = 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        """See more positions. Products of one batch are in the numbers' own precision, float32 at least."""
        if x.dtype in (torch.float16, torch.bfloat16):
            x, y = x.float(), y.float()
        self.count += len(x)
        total = x.sum(0).double()
        self.batches += 1
        self._between = self._between + total.square() / len(x)
        self._x = self._x + total
        self._y = self._y + y.sum(0).double()
        self._xx = self._xx + (x.T @ x).double()
        self._yx = self._yx + (y.T @ x).double()

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        """Of x [n] and y [m]."""
        return torch.as_tensor(self._x) / self.count, torch.as_tensor(self._y) / self.count

    @property
    def covariances(self) -> tuple[Tensor, Tensor]:
        """Of x [n, n], and of y with x [m, n]."""
        x, y = self.means
        return torch.as_tensor(self._xx) / self.count - torch.outer(x, x), torch.as_tensor(
            self._yx
        ) / self.count - torch.outer(y, x)

    @property
    def alike(self) -> float:
        """How many positions count for one, at least 1: those of an image say nearly the same of x. The design effect:
        the variance of the batches' means over what it would be of positions drawn one by one (Kish, "Survey
        Sampling", 1965)."""
        squares = self.count * self.means[0].square()
        between = (torch.as_tensor(self._between) - squares).sum() / max(1, self.batches - 1)
        within = (torch.as_tensor(self._xx).diagonal() - squares).sum() / self.count
        return max(1.0, float(between / within.clamp_min(1e-30)))

    def cautious(self, ridge: float) -> Tensor:
        """The covariance of x [n, n], damped by ``ridge`` and by more the fewer positions there are for each of the n
        numbers: what few of them say of each other is chance, and others will not. Not at all by a ridge of 0."""
        return damped(self.covariances[0], ridge + self.alike * len(self.means[0]) / self.count * (ridge > 0))


def sums(values: Tensor) -> Tensor:
    """Of a batch [positions, n] the sums and those of squares, in double precision [2, n]: each is of so few numbers
    that float32 adds them up."""
    values = values.float()
    return torch.stack([values.sum(0), values.square().sum(0)]).double()


def damped(covariance: Tensor, ridge: float) -> Tensor:
    """``covariance`` with ``ridge`` of its mean variance added to each variance."""
    scale = covariance.diagonal().mean().clamp_min(1e-30)
    return covariance + ridge * scale * torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)


def regression(moments: Moments, ridge: float) -> tuple[Tensor, Tensor]:
    """The linear map A [m, n] and constant c [m] by which y is nearest to A·x + c.

    A = Σ_yx (Σ_xx + λI)⁻¹, λ a share of the mean variance of x, so that what hardly varies predicts hardly anything:
    ``ridge``, and more where the positions are few, see :meth:`Moments.cautious`.
    """
    x, y = moments.means
    _, yx = moments.covariances
    slope = torch.linalg.solve(moments.cautious(ridge), yx.T).T
    return slope, y - slope @ x


def sampled(positions: int, features: int, batches: int, device: torch.device) -> Tensor | None:
    """Of a batch's positions those that are seen, at random, so that products of features stay few; None: all."""
    enough = max(SAMPLES * features, PRODUCTS / features**2) / batches
    if positions <= enough:
        return None
    dice = torch.Generator().manual_seed(positions)
    return torch.randperm(positions, generator=dice)[: int(enough) + 1].to(device)
