"""Singular values weighted by what the layers see: for truncation without training.

The best rank-r W' for given inputs X minimises ‖D(W - W')X‖_F, D the scale of each row by the norm behind
it. With XXᵀ = LLᵀ (Cholesky) and the singular value decomposition DWL = USVᵀ that is C = D⁻¹US, B = VᵀL⁻¹
cut after r (Wang et al., "SVD-LLM", 2024, section 3, there for linear layers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from edp_fx.compressor.factors import coefficient_gains, factors
from edp_fx.compressor.importance import Context, Importance
from edp_fx.compressor.modes import Modes
from edp_fx.errors import TrainingError
from edp_fx.pairs import Pair

RIDGE = 1e-4  # of the mean diagonal: directions never seen in calibration still cost a little
MAX_FEATURES = 5000  # a wider layer's covariance would not fit; it keeps its plain singular values


class Energies(Importance):
    """Given energies per rank, as shares of their layer's; columns of other layers by their norms."""

    def __init__(self, energies: dict[str, Tensor]) -> None:
        super().__init__()
        self.energies = energies

    def scores(self, context: Context) -> Tensor:
        """Share of the layer's energy [n]."""
        elements = context.elements
        result = torch.zeros(elements.n + 1)
        for site in elements.sites:
            if site.role != "consumer":
                continue
            energy = self.energies.get(site.parameter)
            if energy is None:
                weight = context.parameters[site.parameter].detach().cpu()
                dims = [dim for dim in range(weight.dim()) if dim != site.axis]
                energy = weight.square().sum(dims)
            result.index_add_(0, site.index, (energy / energy.sum().clamp_min(1e-30)).float().cpu())
        return result[:-1]


@torch.no_grad()
def whiten(gm: fx.GraphModule, batches: Iterable[tuple[Tensor, ...]], *, limit: int = 8) -> Energies:
    """Split every eligible pair anew by its weighted singular values; the network's function stays.

    Args:
        gm: an explicit graph with pairs; changed in place.
        batches: the network's inputs, a tuple a batch, of which ``limit`` batches are used.
        limit: batches.

    Returns:
        The energies as an importance measure for ranks.
    """
    pairs = {name: module for name, module in gm.named_modules() if isinstance(module, Pair) and _eligible(module)}
    grams: dict[str, Tensor] = {}
    handles = [
        module.basis.register_forward_pre_hook(_collector(name, module.basis, grams)) for name, module in pairs.items()
    ]
    modes = Modes(gm)
    gm.eval()
    device = next(gm.parameters()).device
    try:
        for inputs in islice(batches, limit):
            gm(*(one.to(device) for one in inputs))
    finally:
        for handle in handles:
            handle.remove()
        modes.restore(gm)
    gains = coefficient_gains(gm)
    energies: dict[str, Tensor] = {}
    for name, gram in grams.items():
        parameter = f"{name}.coefficient.weight"
        energies[parameter] = _resplit(pairs[name], gram, gains.get(parameter))
    return Energies(energies)


def _eligible(pair: Pair) -> bool:
    basis = pair.basis
    if type(basis).forward not in (nn.Conv2d.forward, nn.Linear.forward):
        return False
    plain = not isinstance(basis, nn.Conv2d) or (basis.groups == 1 and basis.padding_mode == "zeros")
    return plain and factors(pair)[0][0].numel() <= MAX_FEATURES


def _collector(name: str, basis: nn.Module, grams: dict[str, Tensor]) -> Callable[..., None]:
    def collect(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        images = inputs[0].detach().float()
        if isinstance(basis, nn.Conv2d):
            padding = basis.padding if not isinstance(basis.padding, str) else _same(basis)
            columns = F.unfold(images, basis.kernel_size, basis.dilation, padding, basis.stride)
            features = columns.transpose(0, 1).flatten(1)
        else:
            features = images.flatten(0, -2).T
        gram = features @ features.T
        grams[name] = grams[name] + gram if name in grams else gram

    return collect


def _same(basis: nn.Conv2d) -> tuple[int, int]:
    if basis.padding == "valid":
        return (0, 0)
    return (
        basis.dilation[0] * (basis.kernel_size[0] - 1) // 2,
        basis.dilation[1] * (basis.kernel_size[1] - 1) // 2,
    )


def damped_root(gram: Tensor) -> Tensor:
    """L with LLᵀ the Gram matrix and a ridge, one as large as rounding and few images make it need.

    Raises TrainingError where the layer saw what is no number.
    """
    if not bool(gram.isfinite().all()):
        raise TrainingError("a layer sees values that are no numbers: check the weights, and how images are normalised")
    ridge = RIDGE * float(gram.diagonal().mean()) + 1e-12
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    while True:
        lower, failed = torch.linalg.cholesky_ex(gram + ridge * eye)
        if not int(failed):
            return lower
        ridge *= 10


def _resplit(pair: Pair, gram: Tensor, gain: Tensor | None) -> Tensor:
    """New C and B of a pair; returns the energy of each column."""
    weight = pair.effective_weight().detach().flatten(1).double()
    scale = torch.ones(len(weight)).double() if gain is None else gain.double().clamp_min(1e-6)
    scale = scale.to(weight.device)
    lower = damped_root(gram.double())
    left, singular, right = torch.linalg.svd(scale[:, None] * (weight @ lower), full_matrices=False)
    old_basis, old_coefficient = factors(pair)
    ranks = len(old_basis)
    coefficient = (left * singular / scale[:, None])[:, :ranks]
    basis = torch.linalg.solve_triangular(lower, right[:ranks], upper=False, left=False)
    old_coefficient.copy_(coefficient.reshape(old_coefficient.shape))
    old_basis.copy_(basis.reshape(old_basis.shape))
    return (singular[:ranks] ** 2).float()
