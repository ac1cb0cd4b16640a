"""Everything that only a GPU can show, the most important first; each section ends on its own and writes its rows.

    python -m benchmarks.gpu --out benchmarks/results/gpu.jsonl     # nine minutes on an H100
    python -m benchmarks.gpu --small --out /tmp/gpu.jsonl           # tried anywhere: little, on the processor

Sections (``--sections``), each with its seconds:

``latency``  networks at 224 pixels in half precision, dense, uniformly thinner, by Torch-Pruning, by a budget of MACs
             and by budgets of time for this very card, at batch 64, 1 and 8, in CUDA graphs and compiled, in turns
``device``   the numbers of this card, fitted to layers measured on it; the file stands beside the rows
``training`` a training step of the dense and the compressed network, plain and compiled, and what a removal takes
``tests``    the tests marked gpu

A row has the card's name, what was measured, and for networks compressed for time what was asked, predicted and
measured. What fails is a row with the reason.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx, nn

import edp_fx
from benchmarks.devices import IMAGES, dense
from edp_fx.channels import analyze
from edp_fx.cost import Device, load_device
from edp_fx.cost.fitting import measure_device
from edp_fx.errors import one_line
from edp_fx.latency import make_runtime
from edp_fx.latency.benchmark import bench_models
from edp_fx.passes.prune import prune
from edp_fx.train.compiled import Compiled

NETWORKS = (
    "resnet50", "vit_small_patch16_224", "mobilenetv2_100", "convnext_tiny", "efficientnet_b0", "regnetx_032",
    "densenet121",
)  # fmt: skip
SECONDS = {"latency": 300.0, "device": 60.0, "training": 90.0, "tests": 90.0}
SHARES = (0.5, 0.7, 0.35)


class Rows:
    """A file of JSON lines, each with the card's name.

    Args:
        path: appended to.
        small: on the processor, with small networks.
    """

    def __init__(self, path: Path, small: bool) -> None:
        self.path, self.small = path, small
        self.card = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"

    def add(self, section: str, **row: Any) -> None:
        """Write a row at once: a section may end at any time."""
        line = {"section": section, "card": self.card, "torch": torch.__version__, **row}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)


def thinner(name: str, macs: float) -> fx.GraphModule:
    """All widths by one factor, rounded up to multiples of 8, for a share of the MACs."""
    gm = edp_fx.trace(dense(name).eval(), IMAGES)
    graph = analyze(gm, IMAGES)
    whole = edp_fx.measure(gm, IMAGES).macs
    low, high = 0.1, 1.0
    small = gm
    for _ in range(5):
        share = (low + high) / 2
        keep = {}
        for group in graph.prunable:
            count = min(group.size, int(np.ceil(group.size * share / 8) * 8))
            keep[group.id] = np.arange(group.size) < count
        other = copy.deepcopy(gm)
        small = prune(other, graph, keep).graph_module
        low, high = (share, high) if edp_fx.measure(small, IMAGES).macs < macs * whole else (low, share)
    return small


def by_norm(name: str, macs: float) -> fx.GraphModule:
    """Channels, and of a transformer heads, by norm."""
    kinds = ("channel", "head") if "vit" in name else ("channel",)
    gm = edp_fx.trace(dense(name).eval(), IMAGES)
    return edp_fx.Compressor(gm, IMAGES, macs=macs, importance="norm", kinds=kinds).finish()


def device_of(card: str) -> Device:
    """The device's file for a card, in CUDA graphs; on the processor the one for that."""
    if card == "cpu":
        return load_device("cpu-onnxruntime").under("torch")
    names = ("h200-fp16", "h100-fp16", "a100-fp16", "a10-fp16", "l4-fp16", "t4-fp16", "rtx4090-fp16")
    found = [one for one in map(load_device, names) if one.hardware.lower() in card.lower()]
    return (found or [load_device("h200-fp16").changed(hardware=card)])[0].under("graph")


def by_time(name: str, share: float, device: Device, batch: int) -> tuple[fx.GraphModule, dict[str, Any]]:
    """Channels by norm, to a share of the time on a device; measured and corrected where that is at hand."""
    gm = edp_fx.trace(dense(name).eval(), IMAGES)
    kinds = ("channel", "head") if "vit" in name else ("channel",)
    budget = edp_fx.Budget(latency=share, device=device, batch=batch)
    inexact = name.startswith(("vit", "convnext"))
    options: dict[str, Any] = {"importance": "norm", "kinds": kinds, "allow_inexact": inexact}
    compressor = edp_fx.Compressor(gm, IMAGES, budget=budget, **options)
    small = compressor.finish()
    assert compressor.timing is not None
    return small, compressor.timing.plain()


def by_torch_pruning(name: str, macs: float) -> nn.Module:
    """Magnitudes of the weights, evenly by layer, in multiples of 8."""
    import torch_pruning as tp

    network = dense(name).eval()
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    whole = edp_fx.measure(network, IMAGES).macs
    importance = tp.importance.MagnitudeImportance(p=2)
    options: dict[str, Any] = {"ignored_layers": [last], "iterative_steps": 40, "pruning_ratio": 0.8, "round_to": 8}
    pruner = tp.pruner.MagnitudePruner(network, IMAGES, importance=importance, global_pruning=False, **options)
    while edp_fx.measure(network, IMAGES).macs > macs * whole and pruner.current_step < 40:
        pruner.step()
    return network


def latency(rows: Rows, left: Callable[[], float]) -> None:
    """The table of latencies, network by network."""
    device = device_of(rows.card)
    networks = ("resnet18",) if rows.small else NETWORKS
    for name in networks:
        batches = (2,) if rows.small else (64, 1, 8)
        made: dict[str, tuple[nn.Module, dict[str, Any]]] = {"dense": (dense(name).eval(), {})}
        for what, make in _variants(name, device, batches[0], rows.small):
            if left() <= 0:
                return
            try:
                made[what] = make()
            except Exception as error:
                rows.add("latency", network=name, what=what, reason=one_line(error))
        whole = edp_fx.measure(made["dense"][0], IMAGES)
        costs = {what: edp_fx.measure(network, IMAGES) for what, (network, _) in made.items()}
        for batch in batches:
            for backend in ("torch",) if rows.card == "cpu" else ("graph", "compile"):
                if left() <= 0:
                    return
                models = {what: (network, IMAGES) for what, (network, _) in made.items()}
                precision = "fp32" if rows.card == "cpu" else "fp16"
                seconds = 0.5 if rows.small else 2.0
                options: dict[str, Any] = {"seconds": seconds, "precision": precision}
                for one in bench_models(models, backends=(backend,), batches=(batch,), **options):
                    shares = {
                        "macs": round(costs[one.model].macs / whole.macs, 4),
                        "params": round(costs[one.model].params / whole.params, 4),
                    }
                    rows.add(
                        "latency", network=name, what=one.model, **one.to_json(), **shares, budget=made[one.model][1]
                    )


def _variants(
    name: str, device: Device, batch: int, small: bool
) -> Iterator[tuple[str, Callable[[], tuple[nn.Module, dict[str, Any]]]]]:
    yield "time 0.5", lambda: by_time(name, 0.5, device, batch)
    yield "MACs 0.5", lambda: (by_norm(name, 0.5), {})
    yield "thinner 0.5", lambda: (thinner(name, 0.5), {})
    yield "torch-pruning 0.5", lambda: (by_torch_pruning(name, 0.5), {})
    for share in () if small else SHARES[1:]:
        yield f"time {share}", lambda share=share: by_time(name, share, device, batch)  # type: ignore[misc]


def measured_device(rows: Rows, left: Callable[[], float]) -> None:
    """This card's own file."""
    runtime = make_runtime("torch", device="cpu") if rows.card == "cpu" else make_runtime("graph", precision="fp16")
    known = device_of(rows.card)
    tile = (known.tile_outputs, known.tile_inputs)
    batch, precision = (1, "fp32") if rows.small else (64, "fp16")
    device, probes = measure_device(rows.card.lower().replace(" ", "-"), runtime, precision, batch, (tile,))
    device.write(rows.path.with_suffix(".device.json"))
    rows.add("device", **device.plain())
    for probe in probes:
        rows.add("device", layers=probe.what, ms=probe.measured, fitted=probe.fitted, residual=probe.residual)


def training(rows: Rows, left: Callable[[], float]) -> None:
    """Steps of ResNet-50 dense and at half of its time, as they are and compiled, and a removal."""
    name, side, batch = ("resnet18", 64, 2) if rows.small else ("resnet50", 224, 64)
    where = torch.device("cpu" if rows.card == "cpu" else "cuda")
    made = {"dense": edp_fx.trace(dense(name), IMAGES)}
    made["time 0.5"], _ = by_time(name, 0.5, device_of(rows.card), batch)
    made["MACs 0.5"] = by_norm(name, 0.5)
    for compiled in (False, True):
        for what, graph in made.items():
            if left() <= 0:
                return
            graph.to(where).train()
            network = Compiled(graph, graph, captured=True) if compiled else graph
            steps = _steps(network, side, batch, where)
            rows.add("training", network=name, what=what, batch=batch, compiled=compiled, **steps)
    gm = edp_fx.trace(dense(name).train(), IMAGES).to(where)
    optimizer = torch.optim.SGD(gm.parameters(), lr=1e-3)
    when: dict[str, Any] = {"total_steps": 8, "start": 0.1, "end": 0.9, "decisions": 4, "removals": 2}
    compressor = edp_fx.Compressor(gm, IMAGES.to(where), macs=0.5, kinds=("channel",), optimizer=optimizer, **when)
    for _ in range(8):
        if left() <= 0:
            return
        _step(gm, optimizer, side, batch, where)
        compressor.step()
    for event in compressor.events:
        rows.add("training", network=name, what=event["event"], seconds=event["seconds"])


def _steps(network: nn.Module, side: int, batch: int, where: torch.device, count: int = 12) -> dict[str, float]:
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    times = [_step(network, optimizer, side, batch, where) for _ in range(count)][count // 3 :]
    return {"median_ms": 1e3 * statistics.median(times), "least_ms": 1e3 * min(times), "most_ms": 1e3 * max(times)}


def _step(network: nn.Module, optimizer: Any, side: int, batch: int, where: torch.device) -> float:
    images, labels = torch.randn(batch, 3, side, side, device=where), torch.randint(1000, (batch,), device=where)
    _wait(where)
    started = time.perf_counter()
    with torch.autocast(where.type, torch.bfloat16):
        loss = nn.functional.cross_entropy(network(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    _wait(where)
    return time.perf_counter() - started


def _wait(where: torch.device) -> None:
    if where.type == "cuda":
        torch.cuda.synchronize()


def tests(rows: Rows, left: Callable[[], float]) -> None:
    """The tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"]
    if rows.small:
        command += ["--collect-only"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=max(10.0, left()))
    rows.add("tests", status=done.returncode, said=done.stdout.strip().splitlines()[-1:])


SECTIONS: dict[str, Callable[[Rows, Callable[[], float]], None]] = {
    "latency": latency,
    "device": measured_device,
    "training": training,
    "tests": tests,
}


def main() -> None:
    """Run the sections one after the other; one that fails does not take the others with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sections", nargs="*", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    rows = Rows(options.out, options.small)
    if rows.card == "cpu":
        torch.set_num_threads(1)
    for name in options.sections:
        end = time.monotonic() + SECONDS[name]
        try:
            SECTIONS[name](rows, lambda end=end: end - time.monotonic())  # type: ignore[misc]
        except Exception as error:
            rows.add(name, reason=one_line(error))
        rows.add(name, ended=True, seconds=round(SECONDS[name] - (end - time.monotonic()), 1))


if __name__ == "__main__":
    main()
