"""How fast onnxruntime runs each convolution and product of a network: what a budget of time can gain over one of MACs.

    python -m benchmarks.layer_rates [--models NAME,…] [--repeats 25] [--out FILE.csv]

One image of 224 pixels on one thread, by onnxruntime's own profile: of each layer the median milliseconds over the runs
and its multiply-accumulates a second, from the shapes that the profile has. Where all layers run at one rate, time is
MACs, and a budget of either leaves the same network. A row a network: the share of its time that such layers take,
their rate in all, and the rates within which the middle four fifths of that time are spent, in 10^9 a second.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import rows
from benchmarks.time_budget import IMAGES, made
from edp_fx.latency.runtimes import cpu_name
from edp_fx.lowering.onnx_export import export_onnx
from edp_fx.lowering.precision import prepare
from edp_fx.lowering.profile import Profile, Range

MODELS = "resnet18,resnet50,mobilenetv2_100,vit_tiny_patch16_224"
PRODUCTS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")
COLUMNS = ("model", "layers", "share", "rate", "slow", "fast", "ms", "cpu")


def profile(model: str, repeats: int) -> list[tuple[float, float]]:
    """Median milliseconds and MACs of every node that a run computes."""
    import onnxruntime

    image = IMAGES[:1]
    exported = export_onnx(prepare(made(model, 0), "fp32", (image,)), (image,), Profile(Range.of(1)))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder, "profile"))
        session = onnxruntime.InferenceSession(exported.data, options, providers=["CPUExecutionProvider"])
        for _ in range(repeats):
            session.run(None, {session.get_inputs()[0].name: image.numpy()})
        events = json.loads(Path(session.end_profiling()).read_text())
    seen: dict[str, list[Any]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            seen[event["name"]].append(event)
    return [(statistics.median(one["dur"] for one in mine) / 1e3, _macs(mine[0]["args"])) for mine in seen.values()]


def _macs(shown: dict[str, Any]) -> float:
    """Of a product: its outputs times what each sums over."""
    if shown["op_name"] not in PRODUCTS:
        return 0.0
    given, made_of = (_shapes(shown[name]) for name in ("input_type_shape", "output_type_shape"))
    inputs = math.prod(given[1][1:]) if "Conv" in shown["op_name"] else given[0][-1]
    return float(math.prod(made_of[0]) * inputs)


def _shapes(shown: list[dict[str, list[int]]]) -> list[list[int]]:
    return [next(iter(one.values())) for one in shown]


def measure(model: str, repeats: int) -> dict[str, object]:
    """The row of a network."""
    nodes = profile(model, repeats)
    whole = sum(ms for ms, _ in nodes)
    layers = sorted((macs / ms / 1e6, ms, macs) for ms, macs in nodes if macs)
    spent = np.cumsum([ms for _, ms, _ in layers])
    slow, fast = (layers[int(np.searchsorted(spent, share * spent[-1]))][0] for share in (0.1, 0.9))
    return {
        "model": model,
        "layers": len(layers),
        "share": round(float(spent[-1]) / whole, 3),
        "rate": round(sum(macs for _, _, macs in layers) / float(spent[-1]) / 1e6, 1),
        "slow": round(slow, 1),
        "fast": round(fast, 1),
        "ms": round(whole, 2),
        "cpu": cpu_name(),
    }


if __name__ == "__main__":
    rows.main(__doc__ or "", MODELS, COLUMNS, measure, "benchmarks/results/layer_rates.csv", repeats=25)
