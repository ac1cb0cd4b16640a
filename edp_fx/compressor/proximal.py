"""The group-sparse penalty on the coefficient matrices as a proximal step, and what keeps its scale honest.

R(C) = λ (Σ_j ‖C[:,j]‖₂ + Σ_g ‖C_g‖₂): columns are ranks; rows are joined over every layer that a channel
group couples, together with the scale and shift of the norms in it. The step after the optimiser's,
C_g ← max(0, 1 - t/‖C_g‖) C_g with t = lr·λ·√(size of the group), reaches exact zeros.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from edp_fx.compressor.elements import Elements
from edp_fx.compressor.factors import factors
from edp_fx.pairs import Pair


class Proximal:
    """Soft-thresholding of all groups at once by the same λ, ``strength``."""

    def __init__(self, elements: Elements, strength: float) -> None:
        self.elements = elements
        self.strength = torch.tensor(strength)
        self.sites = elements.penalised
        self.size: Tensor | None = None

    @torch.no_grad()
    def step(self, parameters: Mapping[str, nn.Parameter], lr: float) -> Tensor:
        """Shrink every group by its threshold; returns the norms after it [n]."""
        device = next(iter(parameters.values())).device
        weights = [(site, parameters[site.parameter]) for site in self.sites]
        if self.size is None:
            sizes = [(site, site.line(torch.ones_like(weight))) for site, weight in weights]
            self.size = self.elements.sums(sizes, device)
        norms = self.elements.sums([(site, site.line(weight.square())) for site, weight in weights], device).sqrt()
        threshold = lr * self.strength * self.size.sqrt()
        factor = (1 - threshold / norms.clamp_min(1e-12)).clamp_min(0.0)
        factor[-1] = 1.0
        for site in self.sites:
            self.elements.scale(site, parameters[site.parameter], factor)
        return (norms * factor)[:-1]


@torch.no_grad()
def balance(model: nn.Module, optimizer: Optimizer | None = None) -> None:
    """Give every basis filter unit norm and its coefficient column the norm it had: the product stays as it
    is.

    Otherwise the penalty is met by shrinking the coefficient while the basis grows. Optimiser state shaped
    like a parameter is rescaled as a gradient would be, its square where the name says ``sq``.
    """
    for module in model.modules():
        if not isinstance(module, Pair):
            continue
        basis, coefficient = factors(module)
        if coefficient.shape[1] != len(basis):
            continue  # grouped or transposed: its ranks are not the first axis
        norm = basis.flatten(1).norm(dim=1)
        scale = torch.where(norm > 0, norm, torch.ones_like(norm))
        _rescale(basis, 1 / scale, 0, optimizer)
        _rescale(coefficient, scale, 1, optimizer)


def _rescale(parameter: nn.Parameter, scale: Tensor, axis: int, optimizer: Optimizer | None) -> None:
    shape = [1] * parameter.dim()
    shape[axis] = -1
    line = scale.view(shape)
    parameter.mul_(line)
    if optimizer is None:
        return
    for key, value in optimizer.state.get(parameter, {}).items():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value.div_(line.square() if "sq" in key else line)
