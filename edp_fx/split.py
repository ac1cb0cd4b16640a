"""The spectral split of a weight, W = C·B, at the cost of one symmetric eigenproblem of its smaller side."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from edp_fx.errors import PassError

_ORTHONORMAL = 1e-4
_LOOKED_AT = 32


def spectral_split(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Split each matrix W into C·B with B's rows orthonormal and C's columns of falling norm.

    ‖C[:, j]‖ is the j-th singular value of W (singular value decomposition W = U S Vᵀ, C = U S, B = Vᵀ).
    The vectors of the smaller side come from the eigenvectors of its Gram matrix; C is then W·Bᵀ, or B is
    Uᵀ·W scaled, so the product is W to rounding whatever the error of the eigenvectors.

    Args:
        matrices: (groups, n, m), real floating point.

    Returns:
        C (groups, n, r) and B (groups, r, m), r = min(n, m).
    """
    n, m = matrices.shape[1:]
    scale = matrices.abs().amax().clamp_min(torch.finfo(matrices.dtype).tiny)
    unit = matrices / scale
    if n >= m:
        basis = _eigenvectors(unit.mT @ unit).mT
        return (unit @ basis.mT) * scale, basis.contiguous()
    left = _eigenvectors(unit @ unit.mT)
    rows = left.mT @ unit
    norms = rows.norm(dim=-1)
    basis = rows / norms.clamp_min(torch.finfo(rows.dtype).eps).unsqueeze(-1)
    # Where rows are not orthonormal to rounding, those of least energy are the worst: look at them alone.
    last = min(n, _LOOKED_AT)
    overlap = basis[:, -last:] @ basis.mT
    overlap.diagonal(offset=n - last, dim1=-2, dim2=-1).sub_(1)
    if overlap.abs().amax() < _ORTHONORMAL:
        return left * (norms * scale).unsqueeze(-2), basis
    # Directions of (almost) no energy: their rows are noise, made orthonormal against those before them.
    q, r = torch.linalg.qr(rows.mT)
    return (left @ r.mT) * scale, q.mT.contiguous()


def _eigenvectors(gram: Tensor) -> Tensor:
    """Eigenvectors as columns, the largest eigenvalue first, orthonormal to rounding.

    Solvers leave an error that grows with the size; one Newton-Schulz step takes it back to rounding.
    """
    vectors = _solved(gram)
    error = vectors.mT @ vectors
    error.diagonal(dim1=-2, dim2=-1).sub_(1)
    return vectors - 0.5 * (vectors @ error)


def _solved(gram: Tensor) -> Tensor:
    """Eigenvectors as the solver leaves them.

    LAPACK's float32 solver fails, or gives NaN without a word, on some matrices with many zero rows.
    """
    if not bool(gram.isfinite().all()):
        raise PassError("insert: a weight is not finite; pairs need finite weights")
    for dtype in dict.fromkeys((gram.dtype, torch.float64)):
        with contextlib.suppress(RuntimeError):  # LinAlgError is one
            vectors = torch.linalg.eigh(gram.to(dtype)).eigenvectors.flip(-1)
            if bool(vectors.isfinite().all()):
                return vectors.to(gram.dtype)
    return torch.linalg.svd(gram.double()).U.to(gram.dtype)


def identity_split(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Split W into I·W where it is wide, W·I where it is tall.

    Args:
        matrices: (groups, n, m).

    Returns:
        C (groups, n, r) and B (groups, r, m), r = min(n, m).
    """
    g, n, m = matrices.shape
    eye = torch.eye(min(n, m), dtype=matrices.dtype, device=matrices.device).expand(g, -1, -1).contiguous()
    return (eye, matrices) if n <= m else (matrices, eye)


def rank_for_energy(coefficients: Tensor, energy: float) -> int:
    """The least rank that keeps ``energy`` (0..1] of the squared singular values, over all groups
    together."""
    squares = coefficients.square().sum(dim=(0, 1)).cumsum(0)
    return int((squares < energy * squares[-1]).sum().item()) + 1
