"""On a GPU: graphs move there, runs end there, come out the same from the same seed, and go on from there."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import edp_fx
from edp_fx.cli import main
from edp_fx.compressor import Budget, Compressor
from edp_fx.data import ArrayDataset, make_loader
from edp_fx.inputs import randomize_
from edp_fx.train import Recipe, evaluate
from edp_fx.validation.samples import whole_float32

pytestmark = pytest.mark.gpu
SIDE = 32
INPUTS = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
NETWORKS = (
    "resnet18",
    "mobilenetv2_035",
    "regnety_002",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "maxvit_rmlp_pico_rw_256",
    "xcit_nano_12_p16_224",
    "coat_lite_tiny",
    "mixer_s32_224",
)


def make(name: str = "test_resnet") -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4)
    randomize_(model)
    return model


def loader(seed: int = 0) -> DataLoader[Any]:
    """Four classes told apart by which quarter of the picture is bright."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(192) % 4
    pictures = 0.3 * torch.rand(len(labels), 1, SIDE, SIDE, generator=generator)
    half = SIDE // 2
    for picture, label in zip(pictures, labels.tolist()):
        row, column = divmod(label, 2)
        picture[:, row * half : (row + 1) * half, column * half : (column + 1) * half] += 0.6
    return make_loader(ArrayDataset(pictures, labels, mean=(0.5,), std=(0.3,)), 16, train=True, seed=seed)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return float((a - b).abs().max()) <= 1e-4 * float(b.abs().max())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_graph_traced_on_the_processor_moves_to_the_gpu_and_one_traced_there_back(name: str) -> None:
    side = 256 if name.endswith("256") else 224
    x = torch.randn(2, 3, side, side)
    model = make(name).eval()
    with torch.no_grad(), whole_float32():
        want = model(x)
        moved = edp_fx.insert(edp_fx.trace(model, x)).eval().cuda()
        assert close(moved(x.cuda()).cpu(), want)
        there = edp_fx.trace(copy.deepcopy(model).cuda(), x).eval()
        assert close(there(x.cuda()).cpu(), want)
        assert close(there.cpu()(x), want)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kinds", [("rank", "channel"), ("channel", "kernel", "branch")])
def test_a_run_ends_on_the_gpu_within_its_budget_and_goes_on_from_there(
    tmp_path: Path, precision: str, kinds: tuple[str, ...]
) -> None:
    compact = edp_fx.compress(
        make(), loader(), macs=0.5, kinds=kinds, recipe=Recipe(epochs=6, mixed_precision=precision), val_loader=loader()
    )
    assert next(compact.parameters()).is_cuda
    dense = edp_fx.measure(make(), INPUTS).macs
    assert 0.4 <= edp_fx.measure(compact, INPUTS).macs / dense <= 0.5
    assert compact.meta["edp_fx.run"]["max_rel_diff"] <= 1e-5
    assert evaluate(compact, loader()).accuracy >= 0.9
    # inputs may lie on the processor in all that follows
    compact.eval()
    with torch.no_grad(), whole_float32():
        want = compact(INPUTS.cuda()).cpu()
        again = edp_fx.prune_and_merge(compact, INPUTS)
        assert close(again(INPUTS.cuda()).cpu(), want)
    assert edp_fx.analyze(compact, INPUTS).groups
    edp_fx.save(compact, tmp_path / "net", INPUTS)
    with torch.no_grad():
        assert close(edp_fx.load(tmp_path / "net").eval()(INPUTS), want)
    edp_fx.lower(compact, INPUTS, tmp_path / "net.onnx", target="onnx", batch=(1, 2, 4))
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: INPUTS.numpy()})
    assert close(torch.from_numpy(found), want)


def test_without_training_on_the_gpu() -> None:
    cut = edp_fx.compress(make().cuda(), loader(), macs=0.7, epochs=0)
    assert next(cut.parameters()).is_cuda
    assert edp_fx.measure(cut, INPUTS).macs <= 0.7 * edp_fx.measure(make(), INPUTS).macs


def test_a_seed_gives_the_same_bits_again() -> None:
    def weights(seed: int) -> torch.Tensor:
        compact = edp_fx.compress(make(), loader(seed), macs=0.5, recipe=Recipe(epochs=2, seed=seed))
        return torch.cat([parameter.flatten() for parameter in compact.parameters()])

    first = weights(1)
    assert torch.equal(first, weights(1))
    other = weights(2)
    assert first.shape != other.shape or not torch.equal(first, other)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("importance", ["taylor", "norm", "singular"])
@pytest.mark.parametrize("policy", ["budget", "lambda"])
def test_ones_own_loop_moves_the_network_after_the_compressor_was_made(importance: str, policy: str) -> None:
    train = loader()
    gm = edp_fx.insert(edp_fx.trace(make(), INPUTS))
    optimizer = torch.optim.SGD(gm.parameters(), lr=0.02, momentum=0.9)
    compressor = Compressor(
        gm,
        INPUTS,
        budget=Budget(macs=0.5) if policy == "budget" else None,
        optimizer=optimizer,
        total_steps=3 * len(train),
        importance=importance,
        policy=policy,
        kinds=("rank", "channel"),
    )
    gm.cuda()
    for _ in range(3):
        for images, labels in train:
            optimizer.zero_grad()
            F.cross_entropy(gm(images.cuda()), labels.cuda()).backward()
            optimizer.step()
            compressor.step()
    compact = compressor.finish()
    assert compressor.max_rel_diff <= 1e-5
    if policy == "budget":
        assert edp_fx.measure(compact, INPUTS).macs <= 0.5 * edp_fx.measure(make(), INPUTS).macs


def test_the_command_line_runs_and_resumes_on_the_gpu(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = "--macs 0.5 --epochs 2 --target onnxruntime --mixed-precision bf16"
    command = ["compress", "test_resnet", "--data", "digits", "--out", str(out), *options.split()]
    for more in ([], ["--resume"]):
        with pytest.raises(SystemExit) as left:
            main([*command, *more])
        assert not left.value.code
    report = json.loads((out / "report.json").read_text())
    assert report["compressed"]["macs"] <= 0.5 * report["dense"]["macs"]
