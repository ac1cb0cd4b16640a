"""Detection at equal multiplications: dense and compressed detectors trained alike from random weights.

    python -m benchmarks.detection --data RACCOON [--networks NAME,…] [--seeds 0] [--out FILE.jsonl]

RACCOON is a folder as ``examples/detection.py`` takes it, whose training is used. For each detector the dense one, then
edp_fx at each share of the MACs, by its default and, ``edp-later``, removing between a fifth and half of the run: AP50
on the test images after the last epoch, and milliseconds of the parts that are a graph (backbone, pyramid, heads; on a
first call's inputs) under onnxruntime, one thread, against the dense ones in turns. Finished rows are kept.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import torch

import edp_fx
from benchmarks.compression.results import Results, only_one
from benchmarks.compression.trial import Task
from edp_fx.lowering.latency import onnx_latency
from examples import detection

# how each is trained: what the processor of the committed rows can do in an hour
NETWORKS = {
    "yolo11n": "--size 192 --epochs 60 --lr 0.02",
    "ssdlite320_mobilenet_v3_large": "--epochs 40 --lr 0.02",
    "fasterrcnn_mobilenet_v3_large_320_fpn": "--size 160 --regions 32 --epochs 20 --lr 0.02",
}
TARGETS = (0.5, 0.3)
METHODS = {"edp-budget": "", "edp-later": "--removal 0.2 0.5"}
RESULTS = Path("benchmarks/results/detection.jsonl")


def row(task: Task, data: Path) -> dict[str, Any]:
    """Train the detector, compressed where the target is less than all, and measure."""
    words = f"--data {data} --model {task.network} --macs {task.target} --seed {task.seed} --device cpu"
    more = f"{NETWORKS[task.network]} {METHODS.get(task.method, '')}"
    options = detection.parser().parse_args([*words.split(), *more.split()])
    torch.manual_seed(task.seed)
    classes, loader, test, first = detection.read(options)

    def built() -> tuple[torch.nn.Module, edp_fx.parts.Parts]:
        torch.manual_seed(task.seed)
        model = detection.build(task.network, len(classes), options.size, options.regions, pretrained=False)
        return model, edp_fx.trace_parts(model, first)

    (_, dense), (model, parts) = built(), built()
    started = time.perf_counter()
    detection.train(model, loader, options, parts if task.target < 1 else None)
    seconds = time.perf_counter() - started
    ap50, _ = detection.evaluate(model, test)
    before, after = (edp_fx.measure(one.graph, dense.inputs) for one in (dense, parts))
    times = onnx_latency({"dense": dense.graph.eval(), "small": parts.graph.eval()}, dense.inputs)
    return {
        "ap50": ap50,
        "time_ratio": times["small"].median_ms / times["dense"].median_ms,
        "ms": times["small"].median_ms,
        "macs_ratio": after.macs / before.macs,
        "params_ratio": after.params / before.params,
        "seconds": round(seconds, 1),
        "epochs": options.epochs,
        "train_images": len(loader.dataset),  # type: ignore[arg-type]
        "test_images": len(test.dataset),  # type: ignore[arg-type]
        "options": NETWORKS[task.network],
        "torch": torch.__version__,
    }


def main() -> None:
    """Measure what the file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    runs = [[("dense", 1.0)], *([(method, target) for method in METHODS] for target in TARGETS)]
    tasks = [
        Task(network, method, target, seed)
        for seed in options.seeds
        for some in runs  # one share of all networks first
        for network in options.networks.split(",")
        for method, target in some
    ]
    with only_one(options.out):
        results = Results(options.out)
        for task in tasks:
            if task not in results.rows:
                results.add(task, row(task, options.data))
                print(task, results.rows[task], flush=True)


if __name__ == "__main__":
    main()
