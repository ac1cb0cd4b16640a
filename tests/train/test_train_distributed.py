"""Several processes: the same decisions on every rank, the result of one process with the same global batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = """
import os, sys
import torch
from torch import nn
import edp_fx
from edp_fx.data import ArrayDataset, make_loader
from edp_fx.train import Recipe

torch.set_num_threads(1)
torch.manual_seed(0)
images = torch.rand(96, 1, 8, 8)
labels = (images.mean((1, 2, 3)) * 1000).long() % 3
loader = make_loader(ArrayDataset(images, labels, mean=(0.5,), std=(0.3,), shift=1), 16, train=True)
# no batch norm: its statistics are of each process's share
net = nn.Sequential(
    nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 3),
)
compact = edp_fx.compress(net, loader, macs=0.4, recipe=Recipe(epochs=3, optimizer="sgd", lr=0.05))
rank = os.environ.get("RANK", "0")
torch.save({"state": compact.state_dict(), "events": compact.meta["edp_fx.run"]["events"]}, f"{sys.argv[1]}/{rank}.pt")
"""


def launch(directory: Path, processes: int) -> list[dict[str, Any]]:
    script = directory / "train.py"
    script.write_text(SCRIPT)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    group = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    running = [
        subprocess.Popen(
            [sys.executable, str(script), str(directory)],
            env={**shared, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else shared,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-2000:]
    return [torch.load(directory / f"{rank}.pt") for rank in range(processes)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return launch(tmp_path_factory.mktemp("alone"), 1)[0]


def plain(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in event.items() if key != "seconds"} for event in events]


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_agree_and_match_one_process(alone: dict[str, Any], tmp_path: Path, processes: int) -> None:
    results = launch(tmp_path, processes)
    first = results[0]
    for other in results[1:]:
        assert all(torch.equal(other["state"][key], value) for key, value in first["state"].items())
        decisions = [[e for e in plain(one["events"]) if e["event"] == "decision"] for one in (first, other)]
        assert decisions[0] == decisions[1]
    assert first["state"].keys() == alone["state"].keys()
    for key, value in alone["state"].items():
        assert value.shape == first["state"][key].shape
        assert torch.allclose(value, first["state"][key], rtol=1e-3, atol=1e-4)
