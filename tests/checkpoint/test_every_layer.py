"""Every layer of torch.nn as a leaf of a graph: what is saved is loaded and gives the same, or is refused in a line."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import edp_fx
from edp_fx.errors import CheckpointError

Case = tuple[Callable[[], nn.Module], tuple[Tensor, ...]]


def x(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


CLASSES = torch.tensor([0, 2, 1, 1])
SIGNS = torch.tensor([1.0, -1.0, 1.0, 1.0])
D1, D2, D3 = x(2, 4, 8), x(2, 4, 8, 8), x(2, 4, 8, 8, 8)
OF_DIMS = {"1d": D1, "2d": D2, "3d": D3}


def cases() -> dict[str, Case]:
    """Constructor and inputs by a name that starts with the class's."""
    found: dict[str, Case] = {}

    def add(name: str, make: Callable[[], nn.Module], *inputs: Tensor) -> None:
        found[name] = (make, inputs)

    for dims, given in OF_DIMS.items():
        for name in ("Conv", "ConvTranspose"):
            add(f"{name}{dims}", partial(getattr(nn, name + dims), 4, 8, 3, stride=2, padding=1, groups=2), given)
            add(f"Lazy{name}{dims}", partial(getattr(nn, f"Lazy{name}{dims}"), 8, 3), given)
        padded = partial(getattr(nn, f"Conv{dims}"), 4, 4, 3, padding="same", padding_mode="replicate")
        add(f"Conv{dims}, padded otherwise", padded, given)
        for name in ("BatchNorm", "InstanceNorm"):
            kind = getattr(nn, name + dims)
            add(f"{name}{dims}", partial(kind, 4, affine=True, track_running_stats=True), given)
            add(f"{name}{dims}, of the batch", partial(kind, 4, affine=False, track_running_stats=False), given)
            add(f"Lazy{name}{dims}", getattr(nn, f"Lazy{name}{dims}"), given)
        for name in ("AvgPool", "MaxPool", "AdaptiveAvgPool", "AdaptiveMaxPool"):
            add(f"{name}{dims}", partial(getattr(nn, name + dims), 2), given)
        add(f"MaxPool{dims}, indices too", partial(getattr(nn, f"MaxPool{dims}"), 2, return_indices=True), given)
        add(f"LPPool{dims}", partial(getattr(nn, f"LPPool{dims}"), 2.0, 2), given)
        pooled, indices = getattr(F, f"max_pool{dims}")(given, 2, return_indices=True)
        add(f"MaxUnpool{dims}", partial(getattr(nn, f"MaxUnpool{dims}"), 2), pooled, indices)
        for name in ("CircularPad", "ReflectionPad", "ReplicationPad", "ZeroPad"):
            add(f"{name}{dims}", partial(getattr(nn, name + dims), 1), given)
        add(f"ConstantPad{dims}", partial(getattr(nn, f"ConstantPad{dims}"), 1, 2.5), given)
        add(f"Dropout{dims}", getattr(nn, f"Dropout{dims}"), given)
    for name in (
        "AlphaDropout CELU Dropout ELU FeatureAlphaDropout GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh Identity "
        "LeakyReLU LogSigmoid Mish PReLU RReLU ReLU ReLU6 SELU SiLU Sigmoid Softmax2d Softplus Softshrink Softsign "
        "Tanh Tanhshrink"
    ).split():
        add(name, getattr(nn, name), D2)
    for name in ("LogSoftmax", "Softmax", "Softmin"):
        add(name, partial(getattr(nn, name), dim=1), D2)
    add("Bilinear", lambda: nn.Bilinear(4, 5, 3), x(2, 4), x(2, 5))
    add("ChannelShuffle", lambda: nn.ChannelShuffle(2), D2)
    add("CosineSimilarity", nn.CosineSimilarity, x(2, 4), x(2, 4))
    add("CrossMapLRN2d", lambda: nn.CrossMapLRN2d(2), D2)
    add("Embedding", lambda: nn.Embedding(10, 4, padding_idx=0, max_norm=1.0), CLASSES)
    add("EmbeddingBag", lambda: nn.EmbeddingBag(10, 4, mode="sum"), CLASSES.view(2, 2))
    add("Flatten", nn.Flatten, D2)
    add("Fold", lambda: nn.Fold((4, 4), 2), x(2, 8, 9))
    add("FractionalMaxPool2d", lambda: nn.FractionalMaxPool2d(2, output_size=3), D2)
    add("FractionalMaxPool3d", lambda: nn.FractionalMaxPool3d(2, output_ratio=(0.5, 0.5, 0.5)), D3)
    for name in ("GRU", "LSTM", "RNN"):
        two = partial(getattr(nn, name), 4, 5, num_layers=2, bidirectional=True, batch_first=True, dropout=0.1)
        add(name, two, x(2, 7, 4))
        add(f"{name}Cell", partial(getattr(nn, f"{name}Cell"), 4, 5), x(2, 4))
    add("LSTM, projected", lambda: nn.LSTM(4, 5, proj_size=3, bias=False), x(7, 2, 4))
    add("RNN, relu", lambda: nn.RNN(4, 5, nonlinearity="relu"), x(7, 2, 4))
    add("GroupNorm", lambda: nn.GroupNorm(2, 4), D2)
    add("LayerNorm", lambda: nn.LayerNorm((8, 8), bias=False), D2)
    add("LazyLinear", lambda: nn.LazyLinear(3), D2)
    add("Linear", lambda: nn.Linear(8, 3), D2)
    add("LocalResponseNorm", lambda: nn.LocalResponseNorm(2), D2)
    add("MultiheadAttention", lambda: nn.MultiheadAttention(4, 2, batch_first=True), *(x(2, 7, 4),) * 3)
    add(
        "MultiheadAttention, of three widths",
        lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5, add_bias_kv=True),
        x(7, 2, 4),
        x(6, 2, 3),
        x(6, 2, 5),
    )
    add("PairwiseDistance", nn.PairwiseDistance, x(2, 4), x(2, 4) + 1)
    add("PixelShuffle", lambda: nn.PixelShuffle(2), D2)
    add("PixelUnshuffle", lambda: nn.PixelUnshuffle(2), D2)
    add("RMSNorm", lambda: nn.RMSNorm(8), D2)
    add("SyncBatchNorm", lambda: nn.SyncBatchNorm(4), D2)
    add("Threshold", lambda: nn.Threshold(0.1, 20.0), D2)
    add("Unflatten", lambda: nn.Unflatten(1, (2, 2)), D2)
    add("Unfold", lambda: nn.Unfold(3), D2)
    add("Upsample", lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False), D2)
    add("UpsamplingBilinear2d", lambda: nn.UpsamplingBilinear2d(scale_factor=2), D2)
    add("UpsamplingNearest2d", lambda: nn.UpsamplingNearest2d(size=(5, 7)), D2)
    tokens = x(2, 7, 4)
    encoder, decoder = {"d_model": 4, "nhead": 2, "dim_feedforward": 8, "batch_first": True}, {"d_model": 4, "nhead": 2}
    add("TransformerEncoderLayer", lambda: nn.TransformerEncoderLayer(**encoder, activation="gelu"), tokens)
    add(
        "TransformerEncoderLayer, of a function",
        lambda: nn.TransformerEncoderLayer(**encoder, activation=F.silu, norm_first=True),
        tokens,
    )
    add("TransformerDecoderLayer", lambda: nn.TransformerDecoderLayer(**decoder, dim_feedforward=8), tokens, tokens)
    add(
        "TransformerEncoder",
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(**encoder), 2, nn.LayerNorm(4)),
        tokens,
    )
    add(
        "TransformerDecoder",
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(**decoder, dim_feedforward=8), 2),
        tokens,
        tokens,
    )
    add("Transformer", lambda: nn.Transformer(4, 2, 1, 1, 8, batch_first=True), tokens, tokens)
    add("Sequential", lambda: nn.Sequential(nn.Conv2d(4, 3, 1), nn.ReLU()), D2)
    one, other = x(4, 3), x(4, 3) + 0.5
    share = torch.sigmoid(one)
    for name in ("HuberLoss", "L1Loss", "MSELoss", "PoissonNLLLoss", "SmoothL1Loss"):
        add(name, getattr(nn, name), one, other)
    add("KLDivLoss", nn.KLDivLoss, F.log_softmax(one, 1), share)
    for name in ("BCELoss", "BCEWithLogitsLoss", "MultiLabelSoftMarginLoss"):
        add(name, getattr(nn, name), share, (other > 0).float())
    add("BCEWithLogitsLoss, weighted", lambda: nn.BCEWithLogitsLoss(pos_weight=torch.rand(3)), one, share)
    add("CrossEntropyLoss", lambda: nn.CrossEntropyLoss(torch.rand(3), label_smoothing=0.1), one, CLASSES)
    add("MultiMarginLoss", nn.MultiMarginLoss, one, CLASSES)
    add("NLLLoss", nn.NLLLoss, F.log_softmax(one, 1), CLASSES)
    add("NLLLoss2d", nn.NLLLoss2d, F.log_softmax(D2, 1), torch.zeros(2, 8, 8, dtype=torch.long))
    add("MultiLabelMarginLoss", nn.MultiLabelMarginLoss, one, torch.tensor([[0, -1, 1]] * 4))
    add("HingeEmbeddingLoss", nn.HingeEmbeddingLoss, one[:, 0], SIGNS)
    add("SoftMarginLoss", nn.SoftMarginLoss, one[:, 0], SIGNS)
    add("MarginRankingLoss", nn.MarginRankingLoss, one[:, 0], other[:, 1], SIGNS)
    add("CosineEmbeddingLoss", nn.CosineEmbeddingLoss, one, other, SIGNS)
    add("GaussianNLLLoss", nn.GaussianNLLLoss, one, other, share)
    add("TripletMarginLoss", nn.TripletMarginLoss, one, other, share)
    add("TripletMarginWithDistanceLoss", nn.TripletMarginWithDistanceLoss, one, other, share)
    add(
        "TripletMarginWithDistanceLoss, of a function",
        lambda: nn.TripletMarginWithDistanceLoss(distance_function=F.pairwise_distance),
        one,
        other,
        share,
    )
    add(
        "CTCLoss",
        nn.CTCLoss,
        F.log_softmax(x(6, 2, 4), 2),
        torch.tensor([[1, 2], [2, 3]]),
        torch.tensor([6, 6]),
        torch.tensor([2, 2]),
    )
    add("AdaptiveLogSoftmaxWithLoss", lambda: nn.AdaptiveLogSoftmaxWithLoss(3, 10, [2, 5]), one, CLASSES)
    return found


CASES = cases()
# What holds layers but computes nothing, needs GPUs, or whose arguments are no tensors.
NO_LAYERS = {
    *("Container", "DataParallel", "Module", "ModuleDict", "ModuleList", "ParameterDict", "ParameterList", "RNNBase"),
    *("RNNCellBase", "LinearCrossEntropyLoss"),
}


def around(layer: nn.Module, count: int) -> fx.GraphModule:
    """A graph of one node that calls ``layer``."""
    graph = fx.Graph()
    given = [graph.placeholder(f"x{index}") for index in range(count)]
    graph.output(graph.call_module("layer", tuple(given)))
    return fx.GraphModule(nn.ModuleDict({"layer": layer}), graph).eval()


def outputs(network: nn.Module, inputs: tuple[Tensor, ...]) -> list[Any]:
    torch.manual_seed(0)
    with torch.no_grad():
        return torch.utils._pytree.tree_leaves(network(*inputs))


def test_no_layer_of_torch_is_left_out() -> None:
    known = {name.split(",")[0] for name in CASES} | NO_LAYERS
    there = {name for name, kind in vars(nn).items() if isinstance(kind, type) and issubclass(kind, nn.Module)}
    assert len(there & known) > 150
    assert not there - known


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_a_saved_layer_comes_back(name: str, tmp_path: Path) -> None:
    make, inputs = CASES[name]
    torch.manual_seed(0)
    gm = around(make(), len(inputs))
    if name.startswith("Lazy"):
        with pytest.raises(CheckpointError, match="no sizes before its first run"):
            edp_fx.save(gm, tmp_path / "early", inputs)
        gm(*inputs)
    wanted = outputs(gm, inputs)
    back = edp_fx.load(edp_fx.save(gm, tmp_path / "net", inputs))
    for one, other in zip(wanted, outputs(back, inputs), strict=True):
        assert torch.equal(one, other)
    assert list(back.state_dict()) == list(gm.state_dict())
    back.train()(*inputs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["Conv2d", "BatchNorm2d", "LSTM", "MultiheadAttention", "Embedding", "LayerNorm"])
def test_in_other_types(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    make, inputs = CASES[name]
    gm = around(make().to(dtype), len(inputs))
    inputs = tuple(one.to(dtype) if one.is_floating_point() else one for one in inputs)
    back = edp_fx.load(edp_fx.save(gm, tmp_path, inputs))
    for one, other in zip(outputs(gm, inputs), outputs(back, inputs), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
