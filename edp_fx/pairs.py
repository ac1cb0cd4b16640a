"""The compressed-aware pair: a layer as basis and coefficient, trained at the price of the layer.

The decomposition W = C·B with a basis of r filters and an n x r coefficient matrix follows X. Ruan et al.,
"EDP: An Efficient Decomposition and Pruning Scheme for Convolutional Neural Network Compression", IEEE
TNNLS 2021.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edp_fx.errors import PassError
from edp_fx.geometry import Geometry, as_parameter
from edp_fx.split import identity_split, rank_for_energy, spectral_split

_CONVS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class Pair(nn.Sequential):
    """``basis`` then ``coefficient``: a layer of n outputs as r basis filters and an n x r coefficient
    matrix.

    The basis has the layer's kernel, stride, padding, dilation and groups and no bias; the coefficient is a
    1x1 convolution (a Linear for a Linear) with the layer's bias. Both are plain torch layers. Called as
    one module, the pair computes W = C·B and runs one layer; called one after the other the children give
    the same to rounding.

    Args:
        basis: the basis layer.
        coefficient: the coefficient layer.
    """

    basis: nn.Module
    coefficient: nn.Module

    def __init__(self, basis: nn.Module, coefficient: nn.Module) -> None:
        super().__init__(OrderedDict(basis=basis, coefficient=coefficient))

    # Construction
    # ----------------------------------------------------------------------------------------------

    @classmethod
    def from_layer(
        cls,
        layer: nn.Module,
        start: str = "spectral",
        rank: int | float | None = None,
        energy: float | None = None,
    ) -> Pair:
        """A pair equal to a plain convolution, transposed convolution or linear layer.

        Args:
            layer: the layer; its bias parameter is taken over as it is.
            start: "spectral" (singular vectors) or "identity" (C or B is the identity matrix).
            rank: basis filters a group: a number, or a fraction of min(n, m); None keeps all.
            energy: keep the least rank with this share (0..1] of the squared singular values.
        """
        pair = cls.from_weight(Geometry.of(layer), layer.weight, layer.bias, start, rank, energy)  # type: ignore[arg-type]
        return pair.train(layer.training)

    @classmethod
    @torch.no_grad()
    def from_weight(
        cls,
        geometry: Geometry,
        weight: Tensor,
        bias: Tensor | None,
        start: str = "spectral",
        rank: int | float | None = None,
        energy: float | None = None,
    ) -> Pair:
        """A pair of the given geometry and effective weight; see :meth:`from_layer`."""
        matrices = geometry.matrices(weight.detach())
        full = min(matrices.shape[1:])
        wanted = rank_of(rank, full)
        if start not in ("spectral", "identity"):
            raise PassError(f"insert: start {start!r} is not known; choose 'spectral' or 'identity'")
        if start == "identity" and (wanted < full or energy is not None):
            raise PassError("insert: start 'identity' keeps the full rank; use 'spectral' with rank or energy")
        if weight.is_meta:
            g, n, m = matrices.shape
            c, b = weight.new_empty((g, n, wanted)), weight.new_empty((g, wanted, m))
        else:
            working = matrices.float() if weight.dtype in (torch.float16, torch.bfloat16) else matrices
            c, b = (spectral_split if start == "spectral" else identity_split)(working)
            if energy is not None:
                wanted = min(wanted, rank_for_energy(c, energy))
            c, b = c[..., :wanted].to(weight.dtype), b[:, :wanted].to(weight.dtype)
        mixing = geometry.pointwise()
        kernel = tuple(weight.shape[2:])
        basis = geometry.layer(geometry.weight(b, kernel).contiguous().clone(), None)
        coefficient = mixing.layer(mixing.weight(c, (1,) * geometry.dims).contiguous().clone(), bias)
        for layer in (basis, coefficient):
            layer.get_parameter("weight").requires_grad_(weight.requires_grad or not isinstance(weight, nn.Parameter))
        return cls(basis, coefficient)

    # What it is
    # ------------------------------------------------------------------------------------------------

    @property
    def geometry(self) -> Geometry:
        """Kind, stride, padding and groups: those of the basis."""
        return Geometry.of(self.basis)

    @property
    def groups(self) -> int:
        """Groups of the convolution; 1 for a linear layer."""
        return int(getattr(self.basis, "groups", 1))

    @property
    def rank(self) -> int:
        """Basis filters a group."""
        return int(self.coefficient.get_parameter("weight").shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs a group and inputs a group times kernel: the n x m of the matrix a group decomposes."""
        weight = self.basis.weight
        assert isinstance(weight, Tensor)
        outputs = self.coefficient.get_parameter("weight").shape[0]
        return int(outputs) // self.groups, weight.numel() // max(self.groups * self.rank, 1)

    def source_cost(self) -> int:
        """Weights of the merged layer: also its multiply-accumulates an output position (convolution,
        linear)."""
        n, m = self.shape
        return self.groups * n * m

    def pair_cost(self) -> int:
        """Weights of basis and coefficient, at the present rank."""
        n, m = self.shape
        return self.groups * self.rank * (n + m)

    # Computation
    # -----------------------------------------------------------------------------------------------

    def effective_weight(self) -> Tensor:
        """W = C·B in the layout of the plain layer's weight."""
        b, c = self.basis.weight, self.coefficient.weight
        assert isinstance(b, Tensor)
        assert isinstance(c, Tensor)
        groups = self.groups
        if isinstance(self.basis, nn.modules.conv._ConvTransposeNd):
            mixing = c.flatten(1).unflatten(0, (groups, 1, -1))
            return (mixing @ b.flatten(2).unflatten(0, (groups, -1))).flatten(0, 1).unflatten(2, b.shape[2:])
        if groups == 1:
            return (c.flatten(1) @ b.flatten(1)).view(c.shape[0], *b.shape[1:])
        product = torch.bmm(c.flatten(1).unflatten(0, (groups, -1)), b.flatten(1).unflatten(0, (groups, -1)))
        return product.view(c.shape[0], *b.shape[1:])

    @property
    def weight(self) -> Tensor:
        """The effective weight, for code that reads a layer's weight instead of calling it."""
        return self.effective_weight()

    @property
    def bias(self) -> Tensor | None:
        """The layer's bias."""
        bias = self.coefficient.bias
        assert bias is None or isinstance(bias, Tensor)
        return bias

    def _cheaper_apart(self, input: Tensor) -> bool:
        """Whether two layers are less work for this input than the product C·B and one layer.

        The product costs rank · n · m however few positions use it: for small images or batches it is the dearer.
        """
        n, m = self.shape
        weight = self.basis.weight
        assert isinstance(weight, Tensor)
        inputs = weight.shape[0] if getattr(self.basis, "transposed", False) else weight.shape[1] * self.groups
        positions = input.numel() // max(int(inputs), 1)
        for stride in getattr(self.basis, "stride", ()):
            positions = positions // stride
        product = self.groups * self.rank * n * m
        return positions * self.pair_cost() <= positions * self.source_cost() + product

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Run the pair as one layer; (N, C, …) for convolutions, (…, C) for linear layers."""
        basis = self.basis
        if output_size is None and self._cheaper_apart(input):
            return self.coefficient(basis(input))
        weight, bias = self.effective_weight(), self.bias
        if isinstance(basis, nn.Linear):
            return F.linear(input, weight, bias)
        if isinstance(basis, nn.modules.conv._ConvTransposeNd):
            dims = len(basis.kernel_size)
            padding = basis._output_padding(
                input, output_size, basis.stride, basis.padding, basis.kernel_size, dims, basis.dilation  # type: ignore[arg-type]
            )  # fmt: skip
            return _TRANSPOSED[dims](
                input, weight, bias, basis.stride, basis.padding, padding, basis.groups, basis.dilation
            )
        assert isinstance(basis, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        return basis._conv_forward(input, weight, bias)

    def to_layer(self) -> nn.Module:
        """The plain layer with W = C·B; it shares the bias parameter."""
        with torch.no_grad():
            merged = as_parameter(self.effective_weight())
        weight = self.basis.weight
        assert isinstance(weight, Tensor)
        merged.requires_grad_(weight.requires_grad)
        return self.geometry.layer(merged, self.bias).train(self.training)


def rank_of(rank: int | float | None, full: int) -> int:
    """How many of ``full`` a number, a share or None (all) asks for. Raises PassError for anything else."""
    if rank is None:
        return full
    if isinstance(rank, float) and 0 < rank <= 1:
        return max(1, min(full, round(rank * full)))
    if isinstance(rank, int) and rank >= 1:
        return min(full, rank)
    raise PassError(f"insert: rank {rank!r} is neither a positive number of filters nor a fraction of 0..1")
