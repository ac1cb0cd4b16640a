"""Seconds of tracing against the model's own construction and forward, and of the insertion, on one thread.

    python -m benchmarks.frontend [--models resnet50,…] [--out FILE.csv]

For each network, in turns: build it, run it once in eval mode on its example batch of two, trace it, insert pairs
everywhere with the spectral start (so every singular value decomposition is in it). Medians, in seconds of processor
time (on one thread the wall clock of an idle machine; it does not count what others do). Rows in the file are kept, so
the script goes on where it stopped.
"""

from __future__ import annotations

import statistics

import torch

import edp_fx
from benchmarks import rows
from benchmarks.rows import timed
from edp_fx.models import load_model

MODELS = (
    "resnet18,resnet50,mobilenetv3_large_100,efficientnet_b0,densenet121,convnext_tiny,regnety_032,res2net50_26w_4s,"
    "vit_tiny_patch16_224,vit_base_patch16_224,swin_tiny_patch4_window7_224,maxvit_tiny_tf_224,davit_tiny,hrnet_w18"
)
COLUMNS = ("model", "nodes", "construct_s", "forward_s", "trace_s", "trace_ratio", "pairs", "insert_s", "torch")


def measure(name: str, repeats: int) -> dict[str, object]:
    """The row of one network."""
    seconds: dict[str, list[float]] = {"construct": [], "forward": [], "trace": [], "insert": []}
    for _ in range(repeats + 1):
        loaded, construct = timed(load_model, name)
        model, inputs = loaded.model.eval(), loaded.example_inputs
        with torch.no_grad():
            _, forward = timed(model, *inputs)
        gm, trace = timed(edp_fx.trace, model, inputs)
        nodes = len(gm.graph.nodes)
        inserted, insert = timed(edp_fx.insert, gm)
        for key, value in zip(seconds, (construct, forward, trace, insert)):
            seconds[key].append(value)
    median = {key: statistics.median(values[1:]) for key, values in seconds.items()}
    return {
        "model": name,
        "nodes": nodes,
        **{f"{key}_s": round(value, 4) for key, value in median.items() if key != "insert"},
        "trace_ratio": round(median["trace"] / (median["construct"] + median["forward"]), 3),
        "pairs": len(inserted.meta["edp_fx.reports"][-1].rewritten),
        "insert_s": round(median["insert"], 3),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    rows.main(__doc__, MODELS, COLUMNS, measure, "benchmarks/results/frontend.csv")
