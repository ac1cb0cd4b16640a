"""Widths that tensor cores cannot use whole: which layers have them, and what rounding them up would cost.

Tensor cores read channels in 16-byte vectors, so a width should be a multiple of 16 bytes: 8 in half
precision, 16 in int8, 4 in float32 (TF32). Source: NVIDIA, "Deep Learning Performance: Matrix Multiplication
Background", tensor core requirements. The network's own input and output are left out: the builders pad
those themselves, or cannot.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edp_fx.errors import LoweringError
from edp_fx.inputs import eval_mode

MULTIPLE = {"fp32": 4, "fp16": 8, "bf16": 8, "int8": 16}

_LAYERS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)


@dataclass(frozen=True)
class Misaligned:
    """A layer whose input or output width is not a multiple; MACs are for one sample, before and after
    rounding up.
    """

    layer: str
    inputs: int
    outputs: int
    aligned_inputs: int
    aligned_outputs: int
    macs: int
    aligned_macs: int


@dataclass(frozen=True)
class AlignmentReport:
    """``multiple`` is what widths should divide by; the totals are over all layers, aligned or not."""

    multiple: int
    layers: int
    macs: int
    params: int
    aligned_macs: int
    aligned_params: int
    misaligned: tuple[Misaligned, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """True where every inner width is aligned."""
        return not self.misaligned

    def summary(self) -> str:
        """One line for a person."""
        if self.ok:
            return f"all {self.layers} layers have widths that are multiples of {self.multiple}"
        more = 100.0 * (self.aligned_macs / max(self.macs, 1) - 1.0)
        params = 100.0 * (self.aligned_params / max(self.params, 1) - 1.0)
        return (
            f"{len(self.misaligned)} of {self.layers} layers have widths that are not multiples of "
            f"{self.multiple}; rounding them up costs {more:.1f}% MACs and {params:.1f}% parameters"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def alignment(model: nn.Module, inputs: tuple[Tensor, ...], precision: str) -> AlignmentReport:
    """The widths of every convolution and linear layer that runs on ``inputs`` (rank axes of pairs are layer
    widths too), against the precision's multiple. Depthwise layers do not use tensor cores and are left out.
    Raises LoweringError for an unknown precision.
    """
    if precision not in MULTIPLE:
        raise LoweringError(f"unknown precision {precision!r}: one of {', '.join(MULTIPLE)}")
    seen = _run(model, inputs)
    names = [name for name, *_ in seen]
    multiple = MULTIPLE[precision]
    rows, macs, params, aligned_macs, aligned_params = [], 0, 0, 0, 0
    for index, (name, ins, outs, weights, positions) in enumerate(seen):
        wide_in = ins if index == 0 else math.ceil(ins / multiple) * multiple
        wide_out = outs if index == len(names) - 1 else math.ceil(outs / multiple) * multiple
        grown = weights * (wide_in / ins) * (wide_out / outs)
        macs, params = macs + weights * positions, params + weights
        aligned_macs, aligned_params = aligned_macs + round(grown * positions), aligned_params + round(grown)
        if (wide_in, wide_out) != (ins, outs):
            cost = weights * positions, round(grown * positions)
            rows.append(Misaligned(name, ins, outs, wide_in, wide_out, *cost))
    return AlignmentReport(multiple, len(seen), macs, params, aligned_macs, aligned_params, tuple(rows))


def _run(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[tuple[str, int, int, int, int]]:
    """(name, inputs and outputs of a group, weights, positions each weight is used at in a sample), in
    order.
    """
    seen: dict[str, tuple[str, int, int, int, int]] = {}
    hooks = []

    def note(name: str) -> Any:
        def hook(layer: Any, _: Any, output: Any) -> None:
            groups = getattr(layer, "groups", 1)
            linear = isinstance(layer, nn.Linear)
            ins = (layer.in_features if linear else layer.in_channels) // groups
            outs = (layer.out_features if linear else layer.out_channels) // groups
            if groups > 1 and ins == 1:
                return
            positions = output.numel() // max(output.shape[0], 1) // (outs * groups)
            if getattr(layer, "transposed", False):
                positions = _input_positions(_[0], layer)
            before = seen.get(name)
            seen[name] = (name, ins, outs, layer.weight.numel(), positions + (before[4] if before else 0))

        return hook

    for name, module in model.named_modules():
        if isinstance(module, _LAYERS):
            hooks.append(module.register_forward_hook(note(name)))
    try:
        with torch.no_grad(), eval_mode(model):
            model(*(x[:1] if x.dim() else x for x in inputs))
    except Exception as error:
        raise LoweringError(f"the model does not run on its example inputs: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return list(seen.values())


def _input_positions(given: Tensor, layer: Any) -> int:
    return given.numel() // max(given.shape[0], 1) // layer.in_channels
