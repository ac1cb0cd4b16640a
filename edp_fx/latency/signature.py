"""What a layer's latency depends on: its kind and sizes, not its weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from edp_fx.geometry import Geometry


@dataclass(frozen=True)
class Signature:
    """A convolution or linear layer on an input of one shape.

    Attributes:
        geometry: kind, stride, padding, dilation and groups.
        shape: of the input, (N, C, …) for a convolution and (…, C) for a linear layer.
        outputs: output channels.
        kernel: kernel sizes; () for a linear layer.
        bias: whether there is one.
        dtype: of weights and input, as torch names it.
    """

    geometry: Geometry
    shape: tuple[int, ...]
    outputs: int
    kernel: tuple[int, ...]
    bias: bool
    dtype: str

    @classmethod
    def of(cls, layer: nn.Module, shape: tuple[int, ...]) -> Signature:
        """The signature of ``layer`` on an input of ``shape``, whose channels are replaced by the layer's own."""
        geometry, weight = Geometry.of(layer), layer.weight
        assert isinstance(weight, Tensor)
        first, second = weight.shape[0], weight.shape[1] * geometry.groups
        inputs, outputs = (first, second) if geometry.transposed else (second, first)
        signature = cls(
            geometry,
            tuple(shape),
            int(outputs),
            tuple(weight.shape[2:]),
            getattr(layer, "bias", None) is not None,
            str(weight.dtype).removeprefix("torch."),
        )
        return signature._with_inputs(int(inputs))

    @property
    def _channel_axis(self) -> int:
        return len(self.shape) - self.geometry.dims - 1

    @property
    def inputs(self) -> int:
        """Input channels."""
        return self.shape[self._channel_axis]

    @property
    def macs(self) -> float:
        """Inputs times outputs a group, over all groups: the multiply-accumulates of one position and tap."""
        return self.inputs * self.outputs / self.geometry.groups

    @property
    def key(self) -> str:
        """One readable line, different for different layers."""
        g = self.geometry
        parts = [
            g.kind,
            "x".join(map(str, self.shape)),
            f"to{self.outputs}",
            f"k{self.kernel}",
            f"s{g.stride}",
            f"p{g.padding}",
            f"d{g.dilation}",
            f"o{g.output_padding}",
            f"g{g.groups}",
            g.padding_mode,
            "bias" if self.bias else "plain",
            self.dtype,
        ]
        return " ".join(part.replace(" ", "") for part in parts)

    def narrowed(self, share: float) -> Signature:
        """The same layer with about ``share`` of its input and output channels, at least one.

        A depthwise layer loses groups, another grouped one channels of each group.
        """
        g = self.geometry.groups
        if g > 1 and g == self.inputs:
            groups = max(1, round(g * share))
            narrow = replace(self, geometry=replace(self.geometry, groups=groups), outputs=self.outputs // g * groups)
            return narrow._with_inputs(groups)
        narrow = replace(self, outputs=g * max(1, round(self.outputs / g * share)))
        return narrow._with_inputs(g * max(1, round(self.inputs / g * share)))

    def layer(self) -> nn.Module:
        """A layer of this signature with random weights, the same ones every time, in eval mode."""
        g = self.geometry
        first, second = (self.inputs, self.outputs) if g.transposed else (self.outputs, self.inputs)
        generator = torch.Generator().manual_seed(0)
        dtype = getattr(torch, self.dtype)
        weight = torch.randn((first, second // g.groups, *self.kernel), generator=generator) * (
            max(1.0, second / g.groups) ** -0.5
        )
        bias = torch.randn(self.outputs, generator=generator).to(dtype) if self.bias else None
        return g.layer(weight.to(dtype), bias).eval().requires_grad_(False)

    def example(self) -> Tensor:
        """A random input."""
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(1)).to(getattr(torch, self.dtype))

    def _with_inputs(self, count: int) -> Signature:
        axis = self._channel_axis
        return replace(self, shape=(*self.shape[:axis], count, *self.shape[axis + 1 :]))
