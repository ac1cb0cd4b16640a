"""Attention heads go as a whole where a method names them, and everything else as before."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

import edp_fx
from edp_fx.compressor import Compressor, parameter_groups
from edp_fx.inputs import randomize_

DIMS, HEADS = 16, 6


def run(kinds: tuple[str, ...], macs: float, align: int = 8) -> tuple[Compressor, Tensor]:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=DIMS * HEADS, num_heads=HEADS
    )
    model.reset_classifier(10)
    randomize_(model)
    x = torch.randn(4, 3, 32, 32)
    gm = edp_fx.trace(model, x).train()
    optimizer = torch.optim.SGD(parameter_groups(gm, 1e-4), lr=1e-3, momentum=0.9)
    options = {"end": 0.8, "decisions": 4, "floor": 0.0, "align": align}
    compressor = Compressor(gm, x, macs=macs, kinds=kinds, optimizer=optimizer, total_steps=12, **options)
    for _ in range(12):
        optimizer.zero_grad()
        nn.functional.cross_entropy(gm(x), torch.arange(4)).backward()
        optimizer.step()
        compressor.step()
    trained = {id(one) for group in optimizer.param_groups for one in group["params"]}
    assert {id(one) for one in gm.parameters()} == trained  # cls_token and pos_embed, at the root, among them
    compressor.finish()
    assert compressor.max_rel_diff < 1e-5
    assert edp_fx.measure(compressor.gm, x).macs == torch.tensor(compressor.now).item()
    assert compressor.macs <= macs
    return compressor, x


def qkv(compressor: Compressor) -> list[int]:
    """Outputs of the layers that make queries, keys and values, of each of the three."""
    return [layer["outputs"][1] // 3 for layer in compressor.layers() if layer["name"].endswith("qkv")]


def test_whole_heads_go_and_the_rest_of_attention_stays() -> None:
    compressor, x = run(("head",), 0.75)
    kept = qkv(compressor)
    assert min(kept) < DIMS * HEADS
    assert all(one % DIMS == 0 for one in kept)
    others = [one for one in compressor.layers() if not one["name"].endswith(("qkv", "attn.proj"))]
    assert all(one["outputs"][0] == one["outputs"][1] for one in others)
    compressor.gm.eval()
    assert torch.isfinite(compressor.gm(x[:2])).all()


def test_beside_channels_attention_loses_heads_and_other_layers_channels() -> None:
    compressor, _ = run(("channel", "head"), 0.5)
    assert {group.kind for group in compressor.elements.groups} <= {"channel", "head"}
    kept = qkv(compressor)
    assert all(one % DIMS == 0 for one in kept)
    hidden = [one for one in compressor.layers() if one["name"].endswith("mlp.fc1")]
    assert any(one["outputs"][1] < one["outputs"][0] for one in hidden)


def test_without_heads_attention_loses_the_same_places_in_every_head() -> None:
    compressor, _ = run(("channel",), 0.5, align=1)
    assert any(one % DIMS for one in qkv(compressor))
    assert all(one % HEADS == 0 for one in qkv(compressor))
