"""A SiamFC tracker, dense and compressed, trained alike from random weights.

    python -m benchmarks.tracking --frames DIR --box 315 140 430 255 [--width 0.25] [--steps 1000] [--out FILE.jsonl]

DIR and the box are as ``examples/tracking.py`` takes them, whose training is used. For each share of the MACs the mean
overlap of the compressed tracker's boxes with the dense one's on the frames that are held out, where both start from
the same box; the share of places of those frames, moved and in another light, that a tracker finds within a cell of its
response; and milliseconds of the graph (the backbone on an exemplar and a search region, their correlation) under
onnxruntime, one thread, against the dense one in turns. Finished rows are kept.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import edp_fx
from benchmarks.compression.results import Results, only_one
from benchmarks.compression.trial import Task
from edp_fx.lowering.latency import onnx_latency
from examples import tracking

TARGETS = (0.5, 0.3)
PLACES = 512
RESULTS = Path("benchmarks/results/tracking.jsonl")


@torch.no_grad()
def found(model: tracking.SiamFC, frames: list[Tensor], cells: int) -> float:
    """The share of places at random that get their highest score within a cell of where they are."""
    torch.manual_seed(0)
    model.eval()
    exemplars, regions, places = tracking.pairs(frames, PLACES, cells)
    right = 0
    for exemplar, region, (y, x) in zip(exemplars, regions, places):
        best = int(model.response(model.backbone(exemplar[None]), region[None]).argmax())
        right += max(abs(best // cells - y), abs(best % cells - x)) <= 1
    return right / PLACES


def row(task: Task, options: Any, dense: dict[str, Any] | None) -> dict[str, Any]:
    """Train, and follow the object; ``dense`` is the dense tracker's row, where this is another's."""
    frames = tracking.read_frames(options.frames)
    training, held = tracking.split(frames)
    options.seed, options.macs = task.seed, task.target
    (_, plain), (model, parts) = tracking.build(options, frames), tracking.build(options, frames)
    started = time.perf_counter()
    tracking.train(model, training, options, parts if dense else None)
    seconds = time.perf_counter() - started
    start = dense["boxes"][0] if dense else tracking.track(model, [*training, held[0]], tuple(options.box))[-1]
    boxes = tracking.track(model, held, tuple(start))
    before, after = (edp_fx.measure(one.graph, plain.inputs) for one in (plain, parts))
    times = onnx_latency({"dense": plain.graph.eval(), "small": parts.graph.eval()}, plain.inputs)
    return {
        "overlap": tracking.overlap(dense["boxes"][1:] if dense else boxes[1:], boxes[1:]),
        "found": found(model, held, options.cells),
        "time_ratio": times["small"].median_ms / times["dense"].median_ms,
        "ms": times["small"].median_ms,
        "macs_ratio": after.macs / before.macs,
        "params_ratio": after.params / before.params,
        "seconds": round(seconds, 1),
        "steps": options.steps,
        "width": options.width,
        "frames": [len(training), len(held)],
        "boxes": boxes,
        "torch": torch.__version__,
    }


def main() -> None:
    """Measure what the file lacks."""
    parser = tracking.parser()
    parser.description = __doc__
    parser.set_defaults(out=RESULTS, width=0.25, steps=1000)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with only_one(options.out):
        results = Results(options.out)
        for seed in options.seeds:
            dense = Task("siamfc", "dense", 1.0, seed)
            for task in (dense, *(Task("siamfc", "edp-budget", target, seed) for target in TARGETS)):
                if task not in results.rows:
                    results.add(task, row(task, options, results.rows.get(dense)))
                    print(task, {k: v for k, v in results.rows[task].items() if k != "boxes"}, flush=True)


if __name__ == "__main__":
    main()
