"""Seconds of the channel analysis against the size of the graph, on one thread.

    python -m benchmarks.analysis [--models resnet50,…] [--out FILE.csv]

For each network: trace once, then the median over several analyses, without their proof and with it (``analyze``
proves unless told ``check=False``), in seconds of processor time (on one thread the wall clock of an idle machine; it
does not count what others do). Rows in the file are kept, so the script goes on where it stopped. ``python -m
benchmarks.document`` draws them.
"""

from __future__ import annotations

import statistics
from functools import partial

import numpy as np
import torch

import edp_fx
from benchmarks import rows
from benchmarks.rows import timed
from edp_fx.models import load_model

MODELS = (
    "resnet18,resnet50,resnet152,densenet121,densenet201,mobilenetv3_large_100,efficientnet_b0,efficientnet_b5,hrnet_w18,"
    "res2net50_26w_4s,convnext_tiny,convnext_base,regnety_032,vit_tiny_patch16_224,vit_base_patch16_224,"
    "swin_tiny_patch4_window7_224,swin_base_patch4_window7_224,davit_tiny,maxvit_tiny_tf_224,nfnet_f0,coatnet_0_rw_224,"
    "xcit_tiny_12_p16_224,volo_d1_224,levit_256,mobilevitv2_100,cait_s24_224,inception_v4,dpn92,hiera_tiny_224,tresnet_m"
)
COLUMNS = ("model", "nodes", "params", "groups", "seconds", "proved_seconds", "torch")


def measure(name: str, repeats: int) -> dict[str, object]:
    """The row of one network."""
    loaded = load_model(name)
    gm = edp_fx.trace(loaded.model, loaded.example_inputs)
    seconds: dict[bool, list[float]] = {}
    for check in (False, True):  # not in turns: what a proof leaves behind is collected in the next analysis
        for _ in range(repeats + 1):
            graph, spent = timed(partial(edp_fx.analyze, gm, loaded.example_inputs, check=check))
            seconds.setdefault(check, []).append(spent)
    return {
        "model": name,
        "nodes": len(gm.graph.nodes),
        "params": sum(p.numel() for p in gm.parameters()),
        "groups": len(graph.groups),
        "seconds": round(statistics.median(seconds[False][1:]), 4),
        "proved_seconds": round(statistics.median(seconds[True][1:]), 4),
        "torch": torch.__version__,
    }


def exponent(table: list[dict[str, str]]) -> float:
    """The power of the number of nodes that the seconds grow with."""
    nodes, seconds = (np.log([float(row[key]) for row in table]) for key in ("nodes", "seconds"))
    return float(np.polyfit(nodes, seconds, 1)[0])


if __name__ == "__main__":
    table = rows.main(__doc__, MODELS, COLUMNS, measure, "benchmarks/results/analysis.csv")
    print(f"seconds grow with nodes to the power {exponent(table):.2f} over {len(table)} networks")
