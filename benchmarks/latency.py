"""Whether saved MACs are saved time: pruned and merged networks under onnxruntime, and what pruning and merging takes.

    python -m benchmarks.latency --out benchmarks/results/latency.csv

Weights are random (they do not matter to time), batch-norm statistics too. ``network`` rows: each network is
compressed without training to a share of its MACs, exported to ONNX, and timed at 224 pixels on one thread, dense and
compressed in turns in one process; medians. ``realised`` is the speed-up over (MACs before / MACs after): 1 where
every saved MAC is saved time. ``prune_and_merge`` rows: median seconds of the pass alone on a network with pairs, a
random half of whose exact channels and ranks is dead; ``limit_s`` is what it may take.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from pathlib import Path
from typing import Any

import onnxruntime
import timm
import torch
from torch import fx, nn

import edp_fx
from benchmarks.rows import write
from edp_fx.inputs import randomize_
from edp_fx.latency.runtimes import cpu_name
from edp_fx.lowering.latency import onnx_latency
from edp_fx.validation import masking

NETWORKS = ("resnet18", "resnet50")
RECIPES = ("both", "both+align", "channels", "channels+align", "ranks", "ranks+align")
PASSES = {
    "resnet50": 2.0,
    "convnext_base": 20.0,
    "vit_base_patch16_224": 20.0,
    "densenet201": 20.0,
    "swin_base_patch4_window7_224": 20.0,
}
COLUMNS = (
    "kind", "network", "recipe", "batch", "macs_ratio", "pairs", "dense_ms", "compressed_ms", "latency_ratio",
    "realised", "runs", "seconds", "limit_s", "seed", "threads", "cpu", "torch", "onnxruntime", "edp_fx",
)  # fmt: skip


def made(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = timm.create_model(name).eval()
    randomize_(model, seed)
    return model


def compressed(model: nn.Module, recipe: str, macs: float) -> fx.GraphModule:
    """``channels``: whole channels only; ``ranks``: ranks only; ``both``. ``+align``: in multiples of 8."""
    kinds = {"channels": ("channel", "head"), "ranks": ("rank",), "both": ("rank", "channel", "head")}
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    name, _, options = recipe.partition("+")
    gm = edp_fx.trace(copy.deepcopy(model), x)
    if name != "channels":  # whole channels alone need no pairs
        gm = edp_fx.insert(gm)
    compressor = edp_fx.Compressor(
        gm.eval(),
        x,
        budget=edp_fx.Budget(macs=macs),
        importance="norm",
        kinds=kinds[name],
        align=8 if "align" in options else 1,
    )
    return compressor.finish().eval()


def network_rows(name: str, recipes: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    model = made(name, options.seed)
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    before = edp_fx.measure(model, x).macs
    networks = {"dense": model}
    for recipe in recipes:
        networks[recipe] = compressed(model, recipe, options.macs)
    rows = []
    for batch in (1, 8):
        times = onnx_latency(networks, x, batch=batch, threads=1, seconds=options.seconds)
        for recipe in recipes:
            small = networks[recipe]
            ratio = edp_fx.measure(small, x).macs / before
            latency = times[recipe].median_ms / times["dense"].median_ms
            rows.append(
                {
                    "kind": "network",
                    "network": name,
                    "recipe": recipe,
                    "batch": batch,
                    "macs_ratio": round(ratio, 4),
                    "pairs": sum(type(one).__name__ == "Pair" for one in small.modules()),
                    "dense_ms": round(times["dense"].median_ms, 3),
                    "compressed_ms": round(times[recipe].median_ms, 3),
                    "latency_ratio": round(latency, 4),
                    "realised": round(ratio / latency, 3),
                    "runs": times[recipe].runs,
                }
            )
            print(rows[-1], flush=True)
    return rows


def pass_row(name: str, limit: float, options: argparse.Namespace) -> dict[str, Any]:
    model = made(name, options.seed)
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    before = edp_fx.measure(model, x).macs
    gm = edp_fx.insert(edp_fx.trace(model, x), start="identity").eval()
    graph = edp_fx.analyze(gm, x)
    keep = masking.random_keep(graph, options.seed, exact_only=True)
    masking.zero_members(gm, graph, keep, ("producer", "consumer", "affine", "other"))
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        small = edp_fx.prune_and_merge(gm, x)
        seconds.append(time.perf_counter() - started)
    row = {
        "kind": "prune_and_merge",
        "network": name,
        "macs_ratio": round(edp_fx.measure(small, x).macs / before, 4),
        "runs": len(seconds),
        "seconds": round(statistics.median(seconds), 3),
        "limit_s": limit,
    }
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--passes", nargs="*", default=list(PASSES), choices=list(PASSES))
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=60.0, help="of timing for each batch size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [pass_row(name, PASSES[name], options) for name in options.passes]
    for name in options.networks:
        rows += network_rows(name, options.recipes, options)
    facts = {
        "seed": options.seed,
        "threads": 1,
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "edp_fx": edp_fx.__version__,
    }
    if options.out:
        write(options.out, COLUMNS, ({**facts, **row} for row in rows))


if __name__ == "__main__":
    main()
