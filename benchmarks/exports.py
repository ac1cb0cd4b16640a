"""Files of networks beyond classification, at half of their multiplications: the networks of the examples.

    python -m benchmarks.exports [--out benchmarks/results/exports.csv]

Segmentation networks, the graph that a detector or a tracker runs, each with random weights, its smallest channels gone
until half of the MACs are left, its norms' statistics those of its own values, as in a trained network. For each an
ONNX file, compared with torch under onnxruntime, and a TensorRT-RTX engine, in fp16 where that is near enough, at a
batch from 1 to 8 where the network allows, else at that of the example; the reason where not. Nothing here runs on a
GPU.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, fx

import edp_fx
from benchmarks.rows import read, write
from benchmarks.segmentation import NETWORKS as SEGMENTERS
from edp_fx.errors import EdpError
from edp_fx.inputs import randomize_
from edp_fx.models import load_model
from edp_fx.one_shot import one_shot
from examples import detection, tracking

DETECTORS = ("ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn", "yolo11n")
FILES = {"onnx": ("fp32",), "tensorrt-rtx": ("fp16", "fp32")}  # the first that holds
BATCHES: dict[str, tuple[int, int, int] | int] = {"1 to 8": (1, 4, 8), "2": 2}
PASSES = 40
COLUMNS = ("network", "file", "precision", "made", "batch", "macs", "bytes", "rel_diff", "reason")
Graph = tuple[fx.GraphModule, tuple[Tensor, ...]]


def segmenter(spec: str) -> Graph:
    """A segmentation network at the size of its table."""
    loaded = load_model(spec, num_classes=11, img_size=(96, 128))
    inputs = tuple(one[:1].repeat(2, 1, 1, 1) for one in loaded.example_inputs)
    return edp_fx.trace(loaded.model, inputs), inputs


def detector(name: str) -> Graph:
    """What of a detector is a graph, on two images."""
    model = detection.build(name, 1, 320, 32, pretrained=False)
    targets = [{"boxes": torch.tensor([[20.0, 20.0, 200.0, 150.0]]), "labels": torch.tensor([1])} for _ in range(2)]
    parts = edp_fx.trace_parts(model, ([torch.rand(3, 320, 320) for _ in targets], targets))
    return parts.graph, parts.inputs


def tracker() -> Graph:
    """A tracker's backbone on exemplars and regions, and their correlation."""
    options = tracking.parser().parse_args("--frames none --box 0 0 1 1".split())
    _, parts = tracking.build(options, [torch.rand(3, 360, 480) for _ in range(2)])
    return parts.graph, parts.inputs


MAKERS: dict[str, Callable[[], Graph]] = {
    **{name: lambda spec=spec: segmenter(spec) for name, (spec, _) in SEGMENTERS.items()},  # type: ignore[misc]
    **{name: lambda name=name: detector(name) for name in DETECTORS},  # type: ignore[misc]
    "siamfc": tracker,
}


@torch.no_grad()
def settle(gm: fx.GraphModule, inputs: tuple[Tensor, ...]) -> None:
    """Let the norms see what they normalise, and leave the graph in eval mode."""
    gm.train()
    for _ in range(PASSES):
        gm(*(torch.randn_like(one) for one in inputs))
    gm.eval()


def rows(name: str) -> Iterator[dict[str, str]]:
    """A row for each kind of file."""
    torch.manual_seed(0)
    gm, inputs = MAKERS[name]()
    randomize_(gm)
    dense = edp_fx.measure(gm, inputs).macs
    small = one_shot(gm.eval(), inputs, edp_fx.Method.preset("one-shot", importance="norm", macs=0.5)).gm
    settle(small, inputs)
    macs = f"{edp_fx.measure(small, inputs).macs / dense:.3f}"
    for target, precisions in FILES.items():
        row = dict.fromkeys(COLUMNS, "") | {"network": name, "file": target, "made": "no", "macs": macs}
        reasons = []
        for precision, (words, batch) in itertools.product(precisions, BATCHES.items()):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    made = edp_fx.lower(
                        small, inputs, Path(folder, "it"), target=target, precision=precision, batch=batch
                    )
                except EdpError as error:
                    reasons.append(f"{precision}, {words}: {' '.join(str(error).split())}")
                    continue
            row |= {"made": "yes", "precision": precision, "batch": words, "bytes": str(made.bytes)}
            row["rel_diff"] = f"{made.verification.max_rel_diff:.1e}"
            break
        yield row | {"reason": "; ".join(reasons)}


def main() -> None:
    """Make what the file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(MAKERS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "exports.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    done = {(row["network"], row["file"]): row for row in read(options.out)}
    for name in options.networks.split(","):
        if all((name, target) in done for target in FILES):
            continue
        for row in rows(name):
            done[name, row["file"]] = row
            print(row, flush=True)
        write(options.out, COLUMNS, done.values())


if __name__ == "__main__":
    main()
