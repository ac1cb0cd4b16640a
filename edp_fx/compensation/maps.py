"""What a layer computes while it runs: its one linear map of patches of its input, whatever it does before."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from edp_fx.geometry import ARGUMENTS, FUNCTIONS, Geometry


@dataclass(frozen=True)
class LinearMap:
    """One use of a layer as outputs = weight · patches + bias.

    Attributes:
        source: what the convolution or linear map itself is given, after padding of the layer's own.
        geometry: of the map; not transposed, of one group.
        kernel: sides of its patches; () for a linear layer.
    """

    source: Tensor
    geometry: Geometry
    kernel: tuple[int, ...]

    @property
    def axis(self) -> int:
        """The channels' axis of source and outputs."""
        return 1 if self.geometry.dims else self.source.dim() - 1

    def patches(self, places: Tensor | None = None) -> Tensor:
        """What each output position sees [positions, inputs · kernel]; of all positions or of these only."""
        x = self.source
        if not self.geometry.dims:
            found = x.reshape(-1, x.shape[-1])
            return found if places is None else found[places]
        padded = any(_paddings(self.geometry, self.kernel))
        if padded:
            x = F.pad(x, _paddings(self.geometry, self.kernel))
        for axis, size in enumerate(self.kernel):
            reach = self.geometry.dilation[axis] * (size - 1) + 1
            x = x.unfold(2 + axis, reach, self.geometry.stride[axis])[..., :: self.geometry.dilation[axis]]
        dims = self.geometry.dims
        x = x.permute(0, *range(2, 2 + dims), 1, *range(2 + dims, 2 + 2 * dims))
        if places is None:
            return x.reshape(-1, math.prod(x.shape[1 + dims :]))
        return x[torch.unravel_index(places, x.shape[: 1 + dims])].flatten(1)


def _paddings(geometry: Geometry, kernel: tuple[int, ...]) -> list[int]:
    """As ``F.pad`` takes them, the last axis first."""
    found: list[int] = []
    for axis in reversed(range(geometry.dims)):
        if isinstance(geometry.padding, str):
            whole = geometry.dilation[axis] * (kernel[axis] - 1) if geometry.padding == "same" else 0
            found += [whole // 2, whole - whole // 2]
        else:
            found += [geometry.padding[axis]] * 2
    return found


class Watch(TorchFunctionMode):
    """Lists the convolutions and linear maps that run."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, dict[str, Any], Any]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        kind = FUNCTIONS.get(func)
        if kind is not None:
            names = ARGUMENTS[kind if kind == "linear" else kind[:-2]]
            self.calls.append((kind, {**dict(zip(names, args)), **(kwargs or {})}, result))
        return result


def watched(layer: nn.Module, run: Callable[[], Any]) -> tuple[Any, LinearMap | str]:
    """What ``run``, a call of ``layer``, gives, and which linear map of the layer's own weight that is, or why none."""
    with Watch() as watch:
        result = run()
    if len(watch.calls) != 1:
        return result, "it is not one linear map"
    kind, arguments, output = watch.calls[0]
    own: Any = layer._parameters
    if arguments["weight"] is not own.get("weight") or arguments.get("bias") is not own.get("bias"):
        return result, "its weight is computed"
    if output is not result or not isinstance(result, Tensor):
        return result, "it changes the outputs of its linear map"
    if "transpose" in kind:
        return result, "a transposed convolution spreads its inputs"
    settings = {name: one for name, one in arguments.items() if name not in ("input", "weight", "bias")}
    geometry = Geometry.of_call(kind, settings)
    if geometry.groups != 1:
        return result, "it is grouped: its outputs see few of the channels"
    weight: Tensor = arguments["weight"]
    return result, LinearMap(arguments["input"], geometry, tuple(weight.shape[2:]))
