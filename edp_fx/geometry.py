"""What a convolution or linear layer is apart from its weights, and its weight seen as matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
PLAIN_TYPES: dict[type[nn.Module], str] = {
    nn.Linear: "linear",
    **{t: f"conv{d}d" for d, t in _CONV.items()},
    **{t: f"conv_transpose{d}d" for d, t in _TRANSPOSED.items()},
}
FUNCTIONS: dict[Any, str] = {
    F.linear: "linear",
    F.conv1d: "conv1d",
    F.conv2d: "conv2d",
    F.conv3d: "conv3d",
    F.conv_transpose1d: "conv_transpose1d",
    F.conv_transpose2d: "conv_transpose2d",
    F.conv_transpose3d: "conv_transpose3d",
}
ARGUMENTS = {
    "linear": ("input", "weight", "bias"),
    "conv": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv_transpose": (
        "input",
        "weight",
        "bias",
        "stride",
        "padding",
        "output_padding",
        "groups",
        "dilation",
    ),
}


def layer_arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a functional convolution or linear layer in a graph, by name."""
    kind = FUNCTIONS[node.target]
    return {**dict(zip(ARGUMENTS[kind if kind == "linear" else kind[:-2]], node.args)), **node.kwargs}


def plain_kind(layer: nn.Module) -> str | None:
    """The kind of a layer whose forward is torch's own, None for a subclass that computes something else.

    None, too, for a parametrized layer: it has no weight of its own, and to read what it has instead may change it
    (spectral norm in train mode).
    """
    if is_parametrized(layer):
        return None
    for base, kind in PLAIN_TYPES.items():
        if isinstance(layer, base):
            own_conv = getattr(base, "_conv_forward", None)
            same = type(layer).forward is base.forward
            return kind if same and getattr(type(layer), "_conv_forward", None) is own_conv else None
    return None


def _spread(value: Any, dims: int) -> Any:
    return value if isinstance(value, str) else (value,) * dims if isinstance(value, int) else tuple(value)


@dataclass(frozen=True)
class Geometry:
    """Kind, stride, padding and groups of a layer: everything but weight and bias.

    Attributes:
        kind: "linear", "conv1d" … "conv3d", "conv_transpose1d" … "conv_transpose3d".
    """

    kind: str
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    groups: int = 1
    padding_mode: str = "zeros"

    @property
    def dims(self) -> int:
        """Spatial dimensions: 0 for a linear layer."""
        return 0 if self.kind == "linear" else int(self.kind[-2])

    @property
    def transposed(self) -> bool:
        """Whether this is a transposed convolution, whose weight has its input channels first."""
        return "transpose" in self.kind

    @classmethod
    def of(cls, layer: nn.Module) -> Geometry:
        """The geometry of a plain layer."""
        for base, kind in PLAIN_TYPES.items():
            if isinstance(layer, base):
                if isinstance(layer, nn.Linear):
                    return cls("linear")
                assert isinstance(layer, nn.modules.conv._ConvNd)
                return cls(
                    kind, tuple(layer.stride),
                    layer.padding if isinstance(layer.padding, str) else tuple(layer.padding),
                    tuple(layer.dilation), tuple(layer.output_padding), layer.groups, layer.padding_mode,
                )  # fmt: skip
        raise TypeError(f"{type(layer).__name__} is neither a convolution nor a linear layer")

    @classmethod
    def of_call(cls, kind: str, arguments: dict[str, Any]) -> Geometry:
        """The geometry of a functional call; ``arguments`` by name, plain numbers."""
        if kind == "linear":
            return cls(kind)
        dims = int(kind[-2])

        def given(name: str, default: int) -> Any:
            return _spread(arguments.get(name, default), dims)

        return cls(
            kind, given("stride", 1), given("padding", 0), given("dilation", 1), given("output_padding", 0),
            arguments.get("groups", 1),
        )  # fmt: skip

    def matrices(self, weight: Tensor) -> Tensor:
        """The weight as one n x m matrix a group: (groups, outputs a group, inputs a group x kernel)."""
        g = self.groups
        if self.transposed:
            per_group = weight.unflatten(0, (g, -1)).transpose(1, 2)
            return per_group.flatten(2)
        return weight.flatten(1).unflatten(0, (g, -1))

    def weight(self, matrices: Tensor, kernel: tuple[int, ...]) -> Tensor:
        """The inverse of :meth:`matrices`."""
        if self.transposed:
            return matrices.unflatten(2, (-1, *kernel)).transpose(1, 2).flatten(0, 1)
        flat = matrices.flatten(0, 1)
        return flat.unflatten(1, (-1, *kernel)) if self.dims else flat

    def layer(self, weight: Tensor, bias: Tensor | None) -> nn.Module:
        """A plain layer of this geometry that holds the given tensors; nothing is initialised."""
        if self.kind == "linear":
            made: nn.Module = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
        else:
            outputs, inputs = weight.shape[0], weight.shape[1] * self.groups
            options: dict[str, Any] = {}
            types: Any = _CONV
            if self.transposed:
                outputs, inputs = weight.shape[1] * self.groups, weight.shape[0]
                options["output_padding"] = self.output_padding
                types = _TRANSPOSED
            made = types[self.dims](
                inputs, outputs, tuple(weight.shape[2:]), stride=self.stride, padding=self.padding,
                dilation=self.dilation, groups=self.groups, bias=bias is not None,
                padding_mode=self.padding_mode, device="meta", **options,
            )  # fmt: skip
        made.weight = as_parameter(weight)
        made.register_parameter("bias", None if bias is None else as_parameter(bias))
        return made

    def pointwise(self) -> Geometry:
        """The geometry of the 1x1 layer that mixes this layer's outputs within each group."""
        if self.kind == "linear":
            return self
        d = self.dims
        return Geometry(f"conv{d}d", (1,) * d, (0,) * d, (1,) * d, (0,) * d, self.groups)


def as_parameter(tensor: Tensor) -> nn.Parameter:
    """``tensor`` itself where it is a parameter, a parameter of its values otherwise."""
    if isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor.detach(), requires_grad=torch.is_floating_point(tensor))
