"""Pictures for docs/benchmarks.md: SVG, the same bytes for the same results."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

MARKERS = "osv^D<>pPX"


def accuracy_over_macs(groups: dict[tuple[str, float], list[dict[str, Any]]], path: Path) -> None:
    """One point a (method, target): test accuracy over the share of the dense network's MACs.

    Args:
        groups: the rows of each (method, target), one a seed.
        path: where the picture goes.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    methods = list(dict.fromkeys(method for method, _ in groups))
    for number, method in enumerate(methods):
        rows = sorted((target, rows) for (name, target), rows in groups.items() if name == method)
        x = [statistics.mean(row["macs_ratio"] for row in some) for _, some in rows]
        y = [[100 * row["accuracy"] for row in some] for _, some in rows]
        spread = [statistics.stdev(some) if len(some) > 1 else 0.0 for some in y]
        means = [statistics.mean(some) for some in y]
        if method == "dense":
            axes.axhline(means[0], color="0.5", linewidth=1, label=method)
            continue
        axes.errorbar(x, means, spread, marker=MARKERS[number % len(MARKERS)], linestyle=":", capsize=3, label=method)
    axes.set_xlabel("share of the dense network's MACs")
    axes.set_ylabel("test accuracy, %")
    axes.legend(fontsize="small", ncols=2)
    axes.grid(alpha=0.3)
    _save(figure, path)


def seconds_over_nodes(rows: list[dict[str, Any]], path: Path) -> None:
    """One point a network, both axes logarithmic, with the line of equal seconds a node: its slope is linear.

    Args:
        rows: with ``model``, ``nodes`` and ``seconds``.
        path: where the picture goes.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    nodes, seconds = ([float(row[key]) for row in rows] for key in ("nodes", "seconds"))
    rate = statistics.geometric_mean(s / n for n, s in zip(nodes, seconds))
    axes.loglog(nodes, seconds, "o", markersize=4)
    ends = [min(nodes), max(nodes)]
    axes.loglog(ends, [rate * n for n in ends], linewidth=1, color="0.5", label=f"{1e3 * rate:.2f} ms a node")
    for n, s, row in sorted(zip(nodes, seconds, rows), key=lambda one: one[1])[-4:]:
        axes.annotate(row["model"], (n, s), fontsize=7, ha="right", va="bottom")
    axes.set(xlabel="nodes of the graph", ylabel="seconds of analysis, one thread")
    axes.legend(frameon=False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "edp_fx", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})
