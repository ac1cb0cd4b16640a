"""What a device's file says of networks that were measured on it, and the fit of its numbers.

    python -m benchmarks.devices                 # the table of docs/devices.md
    python -m benchmarks.devices --fit           # prints the five numbers fitted anew

``benchmarks/results/gpu-h200.csv`` holds medians that one H200 measured (torch 2.11, half precision, channels_last,
batch norm folded, random weights; CUDA-graph replay, or compiled with mode="reduce-overhead"). The networks of the rows
marked ``rebuilt`` are made again here, by the settings that their row names; those of the others were chosen by tables
measured there, or by what edp-fx did then, and are only listed in the file.
"""

from __future__ import annotations

import argparse
import copy
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
from edp_fx.cost.fitting import FITTED
from edp_fx.cost.launches import launch_terms
from edp_fx.cost.times import Times
from edp_fx.passes.prune import prune

ROWS = Path(__file__).parent / "results" / "gpu-h200.csv"
DOC = Path(__file__).parent.parent / "docs" / "devices.md"
START, END = "<!-- made by python -m benchmarks.devices -->", "<!-- end of what is made -->"
IMAGES = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
Floats = NDArray[np.float64]


def dense(name: str) -> nn.Module:
    """The network of random weights."""
    torch.manual_seed(0)
    return timm.create_model(name)


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


def by_taylor(name: str, macs: float, kinds: tuple[str, ...], steps: int = 6) -> fx.GraphModule:
    """By gradients of a few steps on random images."""
    gm = edp_fx.trace(dense(name).train(), IMAGES)
    optimizer = torch.optim.SGD(gm.parameters(), lr=1e-3)
    when: dict[str, Any] = {"total_steps": steps, "start": 0.2, "end": 0.9, "decisions": 3, "removals": 1}
    compressor = edp_fx.Compressor(gm, IMAGES, macs=macs, kinds=kinds, optimizer=optimizer, **when)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(gm(torch.randn(4, 3, 224, 224)), torch.randint(1000, (4,))).backward()
        optimizer.step()
        compressor.step()
    return compressor.finish()


def rebuilt(name: str, what: str, macs: float) -> fx.GraphModule:
    """The network of a row."""
    if what == "dense":
        return edp_fx.trace(dense(name).eval(), IMAGES)
    if what.startswith("uniformly"):
        return thinner(name, macs)
    if "by norm" in what:
        return by_norm(name, macs)
    return by_taylor(name, macs, ("channel", "kernel", "branch") if "kernels" in what else ("channel",))


def launches(rows: Sequence[dict[str, str]], device: Device) -> list[tuple[Times, Floats]]:
    """Of each row: its network's launches, and their sizes."""
    made: dict[tuple[str, str], Any] = {}
    found = []
    for row in rows:
        key = row["network"], row["what"]
        if key not in made:
            gm = rebuilt(*key, float(row["macs"])).eval()
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


def fit(rows: Sequence[dict[str, str]], ready: Sequence[tuple[Times, Floats]], device: Device) -> Device:
    """The five numbers of least squared logarithms: of times, by a half at batch 64 and a tenth at batch 1, and of
    speed-ups at batch 64."""
    measured = np.array([float(row["ms"]) for row in rows])
    large = np.array([row["batch"] == "64" for row in rows])
    weight = np.where(large, 0.5, 0.1)

    def device_of(values: Floats) -> Device:
        numbers = np.minimum(np.exp(values), [0.9, 0.9, 0.9, 0.9, 99.0])
        return device.changed(**{name: float(f"{one:.4g}") for name, one in zip(FITTED, numbers, strict=True)})

    def loss(values: Floats) -> float:
        ms = predicted(ready, device_of(values))
        off = np.log(speedups(rows, ms) / speedups(rows, measured))
        return float((weight * np.log(ms / measured) ** 2).sum() + (off[large] ** 2).sum())

    start = np.log([getattr(device, name) for name in FITTED])
    return device_of(minimize(loss, start, method="Nelder-Mead", options={"maxiter": 300}).x)


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
    right, pairs = _order(rows, measured, ms)
    text = (
        f"Of {int(other.sum())} speed-ups at batch 64, {int((off <= 0.15).sum())} are predicted within 15 % (median "
        f"{np.median(off):.0%}, at most {off.max():.0%}). Of {pairs} pairs of rows of one network and runtime at "
        f"batch 64 that differ by more than 3 %, {right} are in the right order."
    )
    return tabulate(lines, headers=heads, tablefmt="github", disable_numparse=True) + "\n\n" + text


def _order(rows: Sequence[dict[str, str]], measured: Floats, ms: Floats) -> tuple[int, int]:
    right = count = 0
    for i, one in enumerate(rows):
        for j in range(i):
            same = all(one[key] == rows[j][key] for key in ("network", "runtime", "batch")) and one["batch"] == "64"
            if same and abs(np.log(measured[i] / measured[j])) > 0.03:
                count += 1
                right += (measured[i] > measured[j]) == (ms[i] > ms[j])
    return right, count


def main() -> None:
    """Rebuild the networks, and say what the device's file says of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for row in read(ROWS) if row["rebuilt"] == "yes"]
    device = load_device("h200-fp16")
    ready = launches(rows, device)
    if options.fit:
        fitted = fit(rows, ready, device)
        print({name: getattr(fitted, name) for name in FITTED})
        print(table(rows, predicted(ready, fitted)))
        return
    made = table(rows, predicted(ready, device))
    text = DOC.read_text()
    before, _, rest = text.partition(START)
    DOC.write_text(f"{before}{START}\n\n{made}\n\n{END}{rest.partition(END)[2]}")
    print(made)


if __name__ == "__main__":
    main()
