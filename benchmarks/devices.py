"""What a device's file says of networks that were measured on it, and the fit of its numbers.

    python -m benchmarks.devices                 # the table of docs/devices.md
    python -m benchmarks.devices --fit           # prints the four numbers fitted anew; --without NETWORK: not to it

``benchmarks/results/gpu-h200.csv`` holds medians that one H200 measured (torch 2.11, half precision, channels_last,
batch norm folded, random weights; CUDA-graph replay, or compiled with mode="reduce-overhead"). The networks of the rows
marked ``rebuilt`` are made again here, from the numbers of channels that edp-fx chose on that day
(``gpu-h200-widths.json``: of each group of channels, by the first parameter that has it; what it chooses today may
differ); those of the others were chosen by tables measured there, and are only listed in the file.
"""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from tabulate import tabulate
from torch import fx, nn

import edp_fx
from benchmarks.rows import read
from edp_fx.channels import analyze
from edp_fx.cost import Device, load_device
from edp_fx.cost.launches import launch_terms
from edp_fx.cost.times import Times
from edp_fx.passes.prune import prune

ROWS = Path(__file__).parent / "results" / "gpu-h200.csv"
WIDTHS = Path(__file__).parent / "results" / "gpu-h200-widths.json"
DOC = Path(__file__).parent.parent / "docs" / "devices.md"
START, END = "<!-- made by python -m benchmarks.devices -->", "<!-- end of what is made -->"
IMAGES = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
VECTOR = 33.45  # 10^12 multiply-accumulates a second of the H200's other cores: half of the data sheet's 66.9 TFLOP/s
Floats = NDArray[np.float64]


def dense(name: str) -> nn.Module:
    """The network of random weights."""
    torch.manual_seed(0)
    return timm.create_model(name)


def rebuilt(name: str, what: str) -> fx.GraphModule:
    """The network of a row."""
    model = dense(name).eval()
    if what == "dense":
        return edp_fx.trace(model, IMAGES)
    kept: dict[str, int] = json.loads(WIDTHS.read_text())[f"{name}: {what}"]
    for one in kept:
        home, apart, _ = one.rpartition(".pointwise.weight")
        if apart:
            model.set_submodule(home, separated(model.get_submodule(home)))
    gm = edp_fx.trace(model, IMAGES)
    graph = analyze(gm, IMAGES)
    counts = {group.id: kept.pop(group.members[0].parameter, group.size) for group in graph.prunable}
    assert not kept, f"{name}, {what}: no such channels: {', '.join(kept)}"
    keep = {group.id: np.arange(group.size) < counts[group.id] for group in graph.prunable}
    return prune(gm, graph, keep).graph_module


def separated(layer: nn.Module) -> nn.Sequential:
    """A convolution as one kernel per channel, and one of 1x1."""
    assert isinstance(layer, nn.Conv2d)
    inputs, outputs = layer.in_channels, layer.out_channels
    kernel: Any = {"kernel_size": layer.kernel_size, "stride": layer.stride, "padding": layer.padding}
    depthwise = nn.Conv2d(inputs, inputs, **kernel, groups=inputs, bias=False)
    return nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=nn.Conv2d(inputs, outputs, 1, bias=False)))


def launches(rows: Sequence[dict[str, str]], device: Device) -> list[tuple[Times, Floats]]:
    """Of each row: its network's launches, and their sizes."""
    made: dict[tuple[str, str], Any] = {}
    found = []
    for row in rows:
        key = row["network"], row["what"]
        if key not in made:
            gm = rebuilt(*key).eval()
            made[key] = gm, analyze(gm, IMAGES)
            print(*key, f"{edp_fx.measure(gm, IMAGES).macs / 1e9:.3f} GMACs", flush=True)
        gm, graph = made[key]
        one = device.under(row["runtime"])
        plain, pairs = launch_terms(gm, graph, one.fuses, int(row["batch"]), one.attention)
        times = Times.made([*plain, *(term for pair in pairs for term in (pair.basis, pair.coefficient))], one)
        found.append((times, np.array([*(axis.whole for axis in times.axes), 1.0])))
    return found


def predicted(ready: Sequence[tuple[Times, Floats]], device: Device) -> Floats:
    """Milliseconds of each row."""
    return np.array([times.on(device).of(counts).sum() for times, counts in ready])


def speedups(rows: Sequence[dict[str, str]], ms: Floats) -> Floats:
    """Of each row against its network's dense one of the same runtime and batch."""
    base = {(r["network"], r["runtime"], r["batch"]): one for r, one in zip(rows, ms) if r["what"] == "dense"}
    return np.array([base[r["network"], r["runtime"], r["batch"]] / one for r, one in zip(rows, ms)])


def with_numbers(device: Device, share: float, memory: float, launch: float, uneven: float) -> Device:
    """The device with what is fitted: one share of the peak for all that matrix units compute, and as large a share of
    the peak of the other cores for depthwise convolutions; shares of the bandwidth and of the speed of uneven
    convolutions; and microseconds of a launch."""
    share, memory, launch, uneven = (float(f"{one:.3g}") for one in (share, memory, launch, uneven))
    depthwise = float(f"{share * VECTOR / device.peak:.3g}")
    return device.changed(
        convolution=share, matrices=share, depthwise=depthwise, memory=memory, launch=launch, uneven=uneven
    )


def fit(rows: Sequence[dict[str, str]], ready: Sequence[tuple[Times, Floats]], device: Device) -> Device:
    """The four numbers of least squared logarithms of speed-ups at batch 64, and, by a fifth and a twentieth, of times
    there and at batch 1. What is off by more than 12 %, and a pair of networks in the wrong order, counts many times:
    it is what a budget of time would be misled by."""
    measured = np.array([float(row["ms"]) for row in rows])
    large = np.array([row["batch"] == "64" for row in rows])
    weight = np.where(large, 0.2, 0.05)
    slower, faster = np.array(_pairs(rows, measured)).T

    def device_of(values: Floats) -> Device:
        return with_numbers(device, *np.minimum(np.exp(values), [0.9, 0.9, 99.0, 1.0]))

    def loss(values: Floats) -> float:
        ms = predicted(ready, device_of(values))
        off = np.log(speedups(rows, ms) / speedups(rows, measured))[large]
        far = np.maximum(0.0, np.abs(off) - 0.12)
        wrong = np.maximum(0.0, 0.01 - np.log(ms[slower] / ms[faster]))
        known = (weight * np.log(ms / measured) ** 2).sum()
        return float(known + (off**2).sum() + 20 * (far**2).sum() + 10 * (wrong**2).sum())

    start = np.log([device.convolution, device.memory, device.launch, device.uneven])
    return device_of(minimize(loss, start, method="Nelder-Mead", options={"maxiter": 400}).x)


def table(rows: Sequence[dict[str, str]], ms: Floats) -> str:
    """Markdown: each row as measured and predicted, and what follows."""
    measured = np.array([float(row["ms"]) for row in rows])
    fast, slow = speedups(rows, ms), speedups(rows, measured)
    lines = [
        [r["network"], r["what"], r["runtime"], r["batch"], f"{m:.3f}", f"{p:.3f}", f"{p / m - 1:+.0%}", f"{s:.2f}",
         f"{f:.2f}", f"{f / s - 1:+.0%}"]
        for r, m, p, s, f in zip(rows, measured, ms, slow, fast)
    ]  # fmt: skip
    heads = ["network", "what", "runtime", "batch", "ms", "predicted", "", "speed-up", "predicted", ""]
    other = np.array([r["what"] != "dense" and r["batch"] == "64" for r in rows])
    off = np.abs(fast / slow - 1)[other]
    pairs = _pairs(rows, measured)
    right = sum(ms[slower] > ms[faster] for slower, faster in pairs)
    text = (
        f"Of {int(other.sum())} speed-ups at batch 64, {int((off <= 0.15).sum())} are predicted within 15 % (median "
        f"{np.median(off):.0%}, at most {off.max():.0%}). Of {len(pairs)} pairs of rows of one network and runtime at "
        f"batch 64 that differ by more than 3 %, {right} are in the right order."
    )
    return tabulate(lines, headers=heads, tablefmt="github", disable_numparse=True) + "\n\n" + text


def _pairs(rows: Sequence[dict[str, str]], measured: Floats) -> list[tuple[int, int]]:
    """(slower, faster): rows of one network and runtime at batch 64 that differ by more than 3 %."""
    found = []
    for i, one in enumerate(rows):
        for j in range(i):
            same = all(one[key] == rows[j][key] for key in ("network", "runtime", "batch")) and one["batch"] == "64"
            if same and abs(np.log(measured[i] / measured[j])) > 0.03:
                found.append((i, j) if measured[i] > measured[j] else (j, i))
    return found


def main() -> None:
    """Rebuild the networks, and say what the device's file says of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--without", help="a network that is not fitted to, and judged all the same")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for row in read(ROWS) if row["rebuilt"] == "yes"]
    device = load_device("h200-fp16")
    ready = launches(rows, device)
    if options.fit:
        used = [number for number, row in enumerate(rows) if row["network"] != options.without]
        fitted = fit([rows[number] for number in used], [ready[number] for number in used], device)
        print({name: getattr(fitted, name) for name in (*device.fitted, "depthwise")})
        print(table(rows, predicted(ready, fitted)))
        return
    made = table(rows, predicted(ready, device))
    text = DOC.read_text()
    before, _, rest = text.partition(START)
    DOC.write_text(f"{before}{START}\n\n{made}\n\n{END}{rest.partition(END)[2]}")
    print(made)


if __name__ == "__main__":
    main()
