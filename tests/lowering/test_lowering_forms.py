"""Operators that go into the file in another form, the same to the last digit that the type has."""

from __future__ import annotations

import pytest
import torch
from timm.models.volo import VOLO
from torch import nn
from torch.nn import functional as F

import edp_fx
from edp_fx.inputs import randomize_
from edp_fx.lowering.decompositions import fold
from edp_fx.lowering.onnx_export import export_onnx
from edp_fx.lowering.precision import cast_inputs, dtype_of, prepare
from edp_fx.lowering.profile import Profile, Range
from edp_fx.lowering.targets import BuildOptions, get_target
from edp_fx.lowering.verify import verify


class Attention(nn.Module):
    """Attention over ``axes`` axes with a bias a head: windows in a fifth, heads folded into the batch in three."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        self.axes, self.qkv, self.bias = axes, nn.Linear(16, 48), nn.Parameter(torch.randn(2, 5, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(3, 0, 1, 4, 2, 5)
        bias = self.bias if self.axes == 5 else self.bias[:1]
        if self.axes == 3:
            parts = parts.flatten(1, 3)
        return nn.functional.scaled_dot_product_attention(*parts.unbind(0), attn_mask=bias)


@pytest.mark.parametrize("axes", [3, 5])
def test_attention_of_any_rank_exports(axes: int) -> None:
    images = torch.randn(2, 4, 5, 16)
    gm = edp_fx.trace(Attention(axes).eval(), images)
    made = export_onnx(prepare(gm, "fp32"), (images,), Profile(Range(1, 2, 4)))
    assert verify(gm, gm, made, "fp32").max_rel_diff < 1e-4


@pytest.mark.parametrize(
    ("size", "kernel", "dilation", "padding", "stride"),
    [
        ((7, 7), (3, 3), (1, 1), (1, 1), (1, 1)),
        ((8, 6), (2, 2), (1, 1), (0, 0), (2, 2)),
        ((14, 15), (3, 2), (1, 2), (1, 0), (2, 1)),  # the last patch leaves a row uncovered
        ((9, 11), (3, 3), (2, 1), (2, 1), (3, 2)),
        ((5, 5), (5, 5), (1, 1), (0, 0), (1, 1)),  # one patch
        ((10, 10), (2, 3), (1, 1), (0, 1), (4, 5)),  # patches apart
    ],
)
@pytest.mark.parametrize("lead", [(2, 3), (1,)])
def test_fold_as_a_transposed_convolution_is_exact(
    size: tuple[int, int],
    kernel: tuple[int, int],
    dilation: tuple[int, int],
    padding: tuple[int, int],
    stride: tuple[int, int],
    lead: tuple[int, ...],
) -> None:
    image = torch.randn(*lead[:-1], 4 * lead[-1], *size, dtype=torch.float64)
    columns = F.unfold(image, kernel, dilation, padding, stride)
    want = F.fold(columns, size, kernel, dilation, padding, stride)
    got = fold(columns, *map(list, (size, kernel, dilation, padding, stride)))
    assert got.shape == want.shape
    assert torch.allclose(got, want, rtol=1e-13, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_network_that_folds_patches_builds(precision: str) -> None:
    torch.manual_seed(0)
    net = VOLO(
        layers=(1, 1),
        img_size=64,
        num_classes=5,
        embed_dims=(32, 64),
        num_heads=(2, 4),
        downsamples=(True, False),
        outlook_attention=(True, False),
    ).eval()
    randomize_(net)
    images = (torch.randn(2, 3, 64, 64),)
    prepared = prepare(net, precision, images)
    made = export_onnx(prepared, cast_inputs(images, dtype_of(precision)), Profile(Range(1, 2, 8)))
    assert verify(net, prepared, made, precision, count=2).max_rel_diff < {"fp32": 1e-4, "fp16": 2e-2}[precision]
    shapes = dict(zip(made.input_names, made.profile.shapes(made.inputs)))
    plan = get_target("tensorrt-rtx").build(made.data, BuildOptions(shapes)).plan
    assert plan.kinds()["deconv"] == 1


class Clipped(nn.Module):
    """Layers with limits of their own on one clipped input, as the attention of Gemma 4 has them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("limits", torch.tensor([0.5, 0.7, 0.9]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        clipped = [y.clamp(-1.5, 1.2).clamp(-limit, limit) for limit in self.limits.unbind()]
        return clipped[0] + 2 * clipped[1] + 3 * clipped[2]


def test_clips_of_clips_of_one_value_keep_their_own_limits() -> None:
    images = torch.randn(2, 3, 8, 8)
    made = export_onnx(Clipped().eval(), (images,), Profile(Range(1, 2, 4)))
    assert verify(Clipped(), Clipped(), made, "fp32").max_rel_diff < 1e-6
