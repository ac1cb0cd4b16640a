"""docs/benchmarks.md: what was measured and what came out, before the tables."""

from __future__ import annotations

import statistics
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.compression.plan import TARGETS
from benchmarks.compression.trial import DESCRIPTIONS as NETWORKS
from benchmarks.document import arithmetic, lines_of, markdown, tools_compared
from benchmarks.rows import read, read_lines
from edp_fx import Method

OURS = "edp-budget"
PEERS = ("tp-", "svd", "slimming")
Row = dict[str, Any]

HEAD = """# Benchmarks

What was measured, and what came out. Written by `python -m benchmarks.document`; [all tables](benchmarks/tables.md) say
how each figure was made, and the raw rows are in `benchmarks/results`.
"""

ACCURACY = """## Accuracy at equal multiplications

Small networks on Fashion-MNIST, ten epochs from random weights for every method: test accuracy in per cent, mean and
standard deviation of the seeds. *thin* is the same network with fewer channels from the start, trained the same way: a
compression that does not beat it is not worth its while. *best peer* is the best row of Torch-Pruning, SVD or network
slimming at these MACs.

{table}

edp_fx is above the best peer in {above} of these {count} rows, and above *thin* in {over_thin} of the {thin} that have
one. Differences of one or two tenths are within what seeds make.

![Test accuracy over MACs, ResNet-20, all runs](benchmarks/compression.svg)
"""
TRAINED = """## From trained weights

CIFAR-10's photographs as JPEG files, 10,000 of them to train. A network of 30 epochs goes on for 10 more by each
method, taught by itself as it was where `+teacher` says so: test accuracy in per cent, mean and standard deviation of
the seeds. *dense* goes on as it is. All in MACs; nothing goes in blocks.

{table}
"""
FROM_RANDOM = """## From random weights, on photographs

The same photographs, 20 epochs in all: test accuracy in per cent, mean and standard deviation of the seeds. edp_fx and
Torch-Pruning remove between the same shares of the run.

{table}

These are 1,580 steps: where removal begins before much was learnt, what goes is chosen badly. On Fashion-MNIST, with
4,690 steps, early removal is as good, and faster.
"""
WITHOUT = """## How much goes without training?

EfficientNet-Lite with its ImageNet weights, some 200 photographs to go by, 500 others to test, both ways round:
accuracy in per cent.

{table}
"""
STRUCTURE = """## Does it work on every model?

Half of the channels of the smallest model of every timm family are removed, and the pruned network must run. {said}

[Coverage](coverage.md) has every model and stage.
"""
ANALYSIS = """## How long does the analysis take?

Of {count} models {least:.2f} to {most:.2f} s, and with its proof, which compares what would be removed with masked
execution, {proved_least:.2f} to {proved_most:.2f} s.

![Seconds over nodes](benchmarks/analysis.svg)
"""
ENGINES = """## Do engines build?

{built} of {count} with TensorRT-RTX, without a GPU. None ran: no speed on a GPU is claimed.
"""


def summary(results: Path) -> str:
    """The page, from the files that are there."""
    parts = [HEAD]
    files = sorted(results.glob("compression*.jsonl"))
    if rows := [row for path in files for row in read_lines(path)]:
        parts.append(accuracy(rows))
    if (path := results / "trained.jsonl").exists():
        parts.append(TRAINED.format(table=markdown(trained(read_lines(path)))))
    if (path := results / "photographs.jsonl").exists():
        parts.append(FROM_RANDOM.format(table=markdown(from_random(read_lines(path)))))
    if (path := results / "without_training.jsonl").exists() and (table := without_training(read_lines(path))):
        parts.append(WITHOUT.format(table=markdown(table)))
    if (path := results / "structural_pruning.jsonl").exists():
        parts.append(STRUCTURE.format(said=tools_compared(path)))
    if (path := results / "training.jsonl").exists():
        parts.append(training(read_lines(path)))
    if (path := results / "analysis.csv").exists():
        seconds, proved = ([float(row[name]) for row in read(path)] for name in ("seconds", "proved_seconds"))
        ends = {"least": min(seconds), "most": max(seconds), "proved_least": min(proved), "proved_most": max(proved)}
        parts.append(ANALYSIS.format(count=len(seconds), **ends))
    if (path := results / "engines.csv").exists():
        built = [row["built"] == "yes" for row in read(path)]
        parts.append(ENGINES.format(built=sum(built), count=len(built)))
    return "\n".join(parts)


def trained(rows: list[Row]) -> list[Row]:
    """A row for each network and target that edp_fx has one in."""
    cells: dict[tuple[str, float], dict[str, list[float]]] = {}
    for row in rows:
        cells.setdefault((row["network"], row["target"]), {}).setdefault(row["method"], []).append(row["accuracy"])
    table = []
    for (network, target), of in cells.items():
        if "trained+teacher" not in of:
            continue
        peers = [one for one in of if one.startswith(("tp-", "slimming", "svd", "thin"))]
        best = max(peers, key=lambda one: statistics.mean(of[one]), default=None)
        table.append(
            {
                "network": network,
                "MACs": f"{target:g}",
                "dense": _spread(cells.get((network, 1.0), {}).get("continued+teacher", [])),
                "edp_fx": _spread(of["trained+teacher"]),
                "best peer": f"{_spread(of[best])} (`{best}`)" if best else "",
            }
        )
    return table


def from_random(rows: list[Row]) -> list[Row]:
    """A row for each network, target and schedule of removal that edp_fx and Torch-Pruning have one in."""
    found: dict[tuple[str, float, str], list[float]] = {}
    for row in rows:
        found.setdefault((row["network"], row["target"], row["method"]), []).append(row["accuracy"])
    table = []
    for (network, target, method), ours in found.items():
        name, *changes = method.split("+")
        peer = found.get((network, target, "+".join(["tp-taylor", *changes])))
        if name != "scratch" or peer is None:
            continue
        told = dict(one.split("=") for one in changes)
        ends = [float(told.get(one, Method.field(one).default)) for one in ("start", "end")]
        table.append(
            {
                "network": network,
                "MACs": f"{target:g}",
                "removal": f"from {ends[0]:g} to {ends[1]:g} of the run",
                "dense": _spread(found.get((network, 1.0, "dense"), [])),
                "edp_fx": _spread(ours),
                "Torch-Pruning, Taylor": _spread(peer),
            }
        )
    return table


def _spread(shares: list[float]) -> str:
    """Mean, and standard deviation of several, in per cent."""
    found = [100 * one for one in shares]
    if len(found) < 2:
        return "".join(f"{one:.2f}" for one in found)
    return f"{statistics.mean(found):.2f} ± {statistics.stdev(found):.2f}"


def without_training(rows: list[Row]) -> list[Row]:
    """A row for each network and target that edp_fx and Torch-Pruning have one in."""
    found: dict[tuple[str, float], dict[str, list[float]]] = {}
    for row in rows:
        of = found.setdefault((row["model"], row["target"]), {})
        of.setdefault(row["method"], []).append(row["accuracy"])
    table = []
    for (name, target), of in sorted(found.items(), key=lambda one: (one[0][0], -one[0][1])):
        means = {method: 100 * statistics.mean(values) for method, values in of.items()}
        peer = max((one for one in means if one.startswith("tp-")), key=lambda one: means[one], default=None)
        if "one-shot" in means and peer is not None:
            dense = 100 * statistics.mean(found[name, 1.0]["dense"])
            line = {"network": f"efficientnet-{name}", "MACs": f"{target:g}", "dense": f"{dense:.1f}"}
            best = f"{means[peer]:.1f} (`{peer}`)"
            table.append({**line, "edp_fx": f"{means['one-shot']:.1f}", "best of Torch-Pruning": best})
    return table


def accuracy(rows: list[Row]) -> str:
    """A row for each network, target and arithmetic that edp_fx has one in."""
    table, above, over_thin, thin = [], 0, 0, 0
    for network, target, kind in product(NETWORKS, TARGETS, sorted({arithmetic(row) for row in rows})):
        mine = [row for row in rows if row["network"] == network and arithmetic(row) == kind]
        mine = [row for row in mine if row["target"] in (1.0, target)]
        lines, _ = lines_of(mine) if mine else ([], [])
        found = {line["method"].strip("`"): line["test accuracy %"] for line in lines}
        if OURS not in found:
            continue
        peers = [line for line in lines if line["method"].strip("`").startswith(PEERS)]
        best = max(peers, key=lambda line: _mean(line["test accuracy %"]), default=None)
        above += best is not None and _mean(found[OURS]) > _mean(best["test accuracy %"])
        if "thin" in found:
            thin += 1
            over_thin += _mean(found[OURS]) > _mean(found["thin"])
        table.append(
            {
                "network": network,
                "MACs": f"{target:g}",
                "trained in": kind,
                "dense": found.get("dense", ""),
                "thin": found.get("thin", ""),
                "edp_fx": found[OURS],
                "best peer": f"{best['test accuracy %']} ({best['method']})" if best else "",
            }
        )
    return ACCURACY.format(table=markdown(table), above=above, count=len(table), over_thin=over_thin, thin=thin)


def training(rows: list[Row]) -> str:
    """What compression costs while training."""
    steps = [row["step_ratio"] for row in rows if "step_ratio" in row]
    runs = [row["run_ratio"] for row in rows if "run_ratio" in row]
    said = "## What does it cost in training?\n\n"
    if steps:
        said += f"A step before anything is removed takes {min(steps):.2f} to {max(steps):.2f} times the plain one's. "
    if runs:
        said += f"A whole run that ends at the budget takes {min(runs):.2f} to {max(runs):.2f} times the plain one's."
    return f"{said.rstrip()}\n"


def _mean(text: str) -> float:
    return float(text.split(" ")[0])
