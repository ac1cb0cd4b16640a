"""The curves and the layers of a run as PNG, for papers and slides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edp_fx.files import whole

_BLUE, _ORANGE, _GREY = "#1f5fbf", "#c26a00", "#b4b9c0"


def write_plots(run: dict[str, Any], directory: Path) -> list[Path]:
    """Write ``curves.png`` and ``layers.png`` of what the run has; returns the paths.

    Args:
        run: what :func:`edp_fx.report.run_data.read_run` gives.
        directory: where to.

    Raises:
        ImportError: matplotlib is not installed.
        EdpError: they cannot be written.
    """
    from matplotlib.figure import Figure

    written = []
    for name, figure in (("curves.png", _curves(run, Figure)), ("layers.png", _layers(run, Figure))):
        if figure is None:
            continue
        with whole(directory / name) as part:
            figure.savefig(part, format="png", dpi=150)
        written.append(directory / name)
    return written


def _curves(run: dict[str, Any], figure_type: Any) -> Any:
    small, dense = run["compressed"], run["dense"]
    if not small["loss"]["step"]:
        return None
    figure = figure_type(figsize=(11, 3.2), layout="constrained")
    loss, accuracy, cost = figure.subplots(1, 3)
    loss.plot(small["loss"]["step"], small["loss"]["loss"], color=_GREY, linewidth=0.7)
    for label, curve, colour in (("dense", dense, _ORANGE), ("compressed", small, _BLUE)):
        if curve["loss"]["step"]:
            loss.plot(curve["loss"]["step"], curve["loss"]["smooth"], color=colour, label=label)
        judged = [one for one in curve["epochs"] if one.get("val_metric") is not None]
        if judged:
            steps, values = [one["step"] for one in judged], [one["val_metric"] for one in judged]
            accuracy.plot(steps, values, color=colour, marker="o", markersize=3, label=label)
    cost.step([0, *small["loss"]["step"]], [1, *small["loss"]["cost"]], where="post", color=_BLUE, label="now")
    decided = [event for event in run["events"] if event.get("goal") is not None]
    if decided:
        steps, goals = [event["step"] for event in decided], [event["goal"] for event in decided]
        cost.step([0, *steps], [1, *goals], where="post", color=_ORANGE, linestyle="--", label="decided")
    if run["target"] is not None:
        cost.axhline(run["target"], color="#1a7f4b", linestyle=":", label="budget")
    cost.set_ylim(0, 1.05)
    titles = ("training loss", f"validation {run['judged_by']}", f"{run['metric']}, share of dense")
    for axes, title in zip((loss, accuracy, cost), titles):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    return figure


def _layers(run: dict[str, Any], figure_type: Any) -> Any:
    layers = [layer for layer in run["layers"] if None not in layer["macs"]]
    if not layers:
        return None
    figure = figure_type(figsize=(8, 1 + 0.19 * len(layers)), layout="constrained")
    axes = figure.subplots()
    places = range(len(layers))
    axes.barh(places, [layer["macs"][0] / 1e6 for layer in layers], color=_GREY, height=0.8, label="dense")
    axes.barh(places, [layer["macs"][1] / 1e6 for layer in layers], color=_BLUE, height=0.45, label="compressed")
    pairs = [f"  (pair, rank {layer['rank'][1]})" if layer["form"] == "pair" else "" for layer in layers]
    names = [layer["name"] + pair for layer, pair in zip(layers, pairs)]
    axes.set_yticks(places, names, fontsize=7)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlabel("million MACs", fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    axes.legend(fontsize=8)
    return figure
