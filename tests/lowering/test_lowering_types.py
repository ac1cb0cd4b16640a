"""Models in other types, memory formats, with other inputs and outputs than one float32 tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import edp_fx
from edp_fx.errors import LoweringError
from edp_fx.inputs import randomize_


class Typed(nn.Module):
    """Names its type: by a constant made in it, and by casting to it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.transposed, self.head = nn.ConvTranspose2d(8, 8, 2, stride=2), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.transposed(self.norm(self.conv(x)).relu())
        y = y + torch.linspace(0, 1, 8, dtype=x.dtype).view(-1, 1, 1)
        y = y * torch.rsqrt(y.float().square().mean((1, 2, 3), keepdim=True) + 1).to(x.dtype)
        return self.head(y.mean((2, 3)))


def combined() -> Iterator[Any]:
    """Every type in every precision, traced and not; of those that are not slow each type and each precision is in
    both."""
    for i, dtype in enumerate((torch.bfloat16, torch.float16, torch.float64)):
        for j, precision in enumerate(("fp32", "fp16", "bf16")):
            for traced in (True, False):
                marks = () if (i + j) % 3 == traced else pytest.mark.slow
                yield pytest.param(traced, dtype, precision, marks=marks)


@pytest.mark.parametrize(("traced", "dtype", "precision"), combined())
def test_a_model_of_any_type_in_any_precision(traced: bool, dtype: torch.dtype, precision: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Typed()
    randomize_(model)
    model = model.to(dtype).eval()
    x = torch.randn(2, 3, 8, 8, dtype=dtype)
    network: nn.Module = edp_fx.insert(edp_fx.trace(model, x)) if traced else model
    done = edp_fx.lower(network, x, tmp_path / "m.onnx", target="onnx", precision=precision)
    assert {one.batch for one in done.verification.checks} == {1, 2, 5}
    assert next(model.parameters()).dtype == dtype
    if precision != "bf16":
        with torch.no_grad():
            wanted = model.double()(x.double())
        got = edp_fx.lower.load_engine(tmp_path / "m.onnx")(x)  # type: ignore[attr-defined]
        assert float((got.double() - wanted).abs().max() / wanted.std()) < 0.1


@dataclass
class Out:
    features: Tensor
    logits: Tensor | None = None
    more: Any = None


class Many(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.conv, self.head = nn.Embedding(10, 8), nn.Conv2d(3, 8, 1), nn.Linear(8, 4)

    def forward(self, tokens: Tensor, image: Tensor, mask: Tensor) -> Any:
        a = self.table(tokens).masked_fill(mask[..., None], 0.0)
        b = self.conv(image).mean((2, 3))
        return Out(a, more={"logits": self.head(a.mean(1) + b), "mask": ~mask, "first": [tokens + 1]})


@pytest.mark.parametrize("traced", [True, False])
def test_several_inputs_and_outputs_of_several_types(traced: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Many().eval()
    inputs = torch.randint(0, 10, (2, 6)), torch.randn(2, 3, 4, 4), torch.rand(2, 6) > 0.5
    network: nn.Module = edp_fx.trace(model, inputs) if traced else model
    edp_fx.lower(network, inputs, tmp_path / "m.onnx", target="onnx", precision="fp32")
    got = edp_fx.lower.load_engine(tmp_path / "m.onnx")(*inputs)  # type: ignore[attr-defined]
    with torch.no_grad():
        wanted = model(*inputs)
    more = wanted.more
    for one, other in zip((wanted.features, more["logits"], more["mask"], more["first"][0]), got, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_channels_innermost(tmp_path: Path) -> None:
    model = Typed().to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    edp_fx.lower(edp_fx.trace(model, x), x, tmp_path / "m.onnx", target="onnxruntime", precision="fp16")


def test_what_is_no_tensor_is_no_output(tmp_path: Path) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return x * 2, 3

    with pytest.raises(LoweringError, match="must return tensors"):
        edp_fx.lower(Net(), torch.randn(2, 3), tmp_path / "m.onnx", target="onnx")
    assert not any(tmp_path.iterdir())


class AnyArguments(nn.Module):
    """Takes what else it may be given, as YOLO's models do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.conv(x, *args, **kwargs)


class ByValues(nn.Module):
    """As many outputs as there are values above a bound."""

    def forward(self, x: Tensor) -> Tensor:
        kept = x[x > 0]
        return kept[:5] if len(kept) > 5 else kept


def test_a_model_that_takes_any_arguments_is_lowered(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 8, 8)
    model = AnyArguments().eval()
    edp_fx.lower(model, x, tmp_path / "m.onnx", target="onnx")
    other = torch.randn(3, 3, 8, 8)
    got = edp_fx.lower.load_engine(tmp_path / "m.onnx")(other)  # type: ignore[attr-defined]
    torch.testing.assert_close(got, model(other), rtol=1e-4, atol=1e-5)


def test_a_model_that_depends_on_values_is_told_the_way(tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match=r"depends on values: edp_fx\.trace_parts"):
        edp_fx.lower(ByValues().eval(), torch.randn(2, 3, 8, 8), tmp_path / "m.onnx", target="onnx")
