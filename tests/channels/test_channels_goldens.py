"""The groups of eight well-known networks, as a person reads them.

`python tests/test_channels_goldens.py` writes them anew.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import edp_fx
from edp_fx.models import load_model

NETWORKS = {
    "resnet50": 224,
    "densenet121": 224,
    "vit_tiny_patch16_224": 224,
    "swin_tiny_patch4_window7_224": 224,
    "mobilenetv3_small_100": 224,
    "torchvision:shufflenet_v2_x1_0": 224,
    "hrnet_w18_small": 224,
    "res2net50_26w_4s": 224,
}
FOLDER = Path(__file__).parent / "goldens"


def text(name: str) -> str:
    """One line a group: what makes it, what reads it, how many, how exact; frozen ones with their reason."""
    loaded = load_model(name)
    graph = edp_fx.analyze(loaded.model, torch.randn(2, 3, NETWORKS[name], NETWORKS[name]))
    counts = graph.summary()
    lines = [
        f"{counts['groups']} groups, {counts['prunable']} of {counts['channels']} channels prunable, "
        f"{100 * counts['exact_share']:.1f}% of them exactly"
    ]
    for group in graph.groups:
        if not group.producers:
            continue
        state = f"frozen: {group.frozen}" if group.frozen else ("exact" if group.exact else "inexact")
        lines.append(
            f"{group.size} x {' + '.join(group.producers)} -> {' + '.join(group.consumers) or '(output)'} | {state}"
        )
    return "\n".join(lines) + "\n"


def file(name: str) -> Path:
    return FOLDER / f"{name.rpartition(':')[2]}.txt"


@pytest.mark.parametrize("name", NETWORKS)
def test_golden(name: str) -> None:
    assert text(name) == file(name).read_text()


if __name__ == "__main__":
    for one in NETWORKS:
        file(one).write_text(text(one))
