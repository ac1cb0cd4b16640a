"""What the directory of a run holds, read for its page and its plots."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from edp_fx.errors import EdpError

METRICS = ("macs", "params", "latency")
_MOST_POINTS = 3000  # of a curve


def read_run(directory: Path) -> dict[str, Any]:
    """The run in ``directory``, finished or not.

    Returns plain values: ``report`` (report.json or None), ``metric`` (what the budget counts), ``judged_by``
    (the metric that validates), ``events``,
    ``compressed`` and ``dense`` (each ``loss``: step, loss, smoothed loss, cost; ``epochs``: records), and
    ``layers`` (the report's, each with ``macs``: [before, after] per sample, None where not known).

    Raises:
        EdpError: there is no such run, or a file of it is damaged.
    """
    if not directory.is_dir():
        raise EdpError(f"{directory}: no such directory; give the --out of edp-fx compress")
    report = _read_report(directory / "report.json")
    lines = _read_lines(directory / "metrics.jsonl")
    if report is None and not lines:
        raise EdpError(f"{directory}: neither report.json nor metrics.jsonl in it; give the --out of edp-fx compress")
    budget = report["run"]["method"]["budget"] or {} if report is not None else {}
    metric = next((name for name in METRICS if name in budget or any(name in line for line in lines)), "macs")
    events = (report or {}).get("events")
    return {
        "report": report,
        "metric": metric,
        "judged_by": next((one["metric_name"] for one in lines if "metric_name" in one), "metric"),
        "target": budget.get(metric),
        "events": [line for line in lines if "event" in line] if events is None else events,
        "compressed": _curves(lines, metric),
        "dense": _curves(_read_lines(directory / "dense" / "metrics.jsonl"), metric),
        "layers": _with_macs((report or {}).get("layers", []), directory),
    }


def _read_report(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        report = json.loads(path.read_text())
        if not isinstance(report, dict) or not {"dense", "compressed", "run"} <= report.keys():
            raise ValueError("not the report of a run")
    except (OSError, ValueError) as error:
        raise EdpError(f"{path}: cannot be read: {error}") from error
    return report


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file; a last line that is still being written is left out."""
    try:
        text = path.read_text().splitlines() if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise EdpError(f"{path}: cannot be read: {error}") from error
    records = []
    for number, line in enumerate(text, 1):
        try:
            record = json.loads(line)
            records.append({"step": int(record["step"]), **record})
        except (ValueError, KeyError, TypeError) as error:
            if number == len(text):
                break
            raise EdpError(f"{path}: line {number} is damaged") from error
    return records


def _curves(lines: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    steps = [line for line in lines if "loss" in line]
    smooth: list[float] = []
    level = 0.0
    keep = 1 - 1 / max(5, len(steps) / 40)  # an average over a fortieth of the run
    for count, line in enumerate(steps, 1):
        level = keep * level + (1 - keep) * line["loss"]
        smooth.append(level / (1 - keep**count))  # as Adam corrects its averages for the start
    every = -(-len(steps) // _MOST_POINTS) or 1
    chosen = sorted({*range(0, len(steps), every), len(steps) - 1}) if steps else []
    return {
        "loss": {
            "step": [steps[k]["step"] for k in chosen],
            "loss": [steps[k]["loss"] for k in chosen],
            "smooth": [smooth[k] for k in chosen],
            "cost": [steps[k].get(metric) for k in chosen],
        },
        "epochs": [line for line in lines if "epoch" in line],
    }


def _with_macs(layers: list[dict[str, Any]], directory: Path) -> list[dict[str, Any]]:
    if not layers:
        return []
    before, after = _layer_macs(directory / "dense"), _layer_macs(directory)
    return [{**layer, "macs": [_of(before, layer["name"]), _of(after, layer["name"])]} for layer in layers]


def _of(macs: Mapping[str, int] | None, name: str) -> int | None:
    """Multiply-accumulates of a layer, which may have become two."""
    if macs is None:
        return None
    halves = ("basis", "coefficient", "depthwise", "pointwise")
    return macs.get(name, sum(macs.get(f"{name}.{half}", 0) for half in halves))


def _layer_macs(directory: Path) -> dict[str, int] | None:
    """Multiply-accumulates of each module of a saved network for one sample; None where none is saved."""
    from torch.utils.flop_counter import FlopCounterMode

    from edp_fx.models import load_model

    if not (directory / "recipe.json").exists():
        return None
    try:
        loaded = load_model(str(directory))
    except EdpError:
        return None  # of another version, or damaged: the rest of the page does not need it
    model = loaded.model.eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(*(tensor[:1] for tensor in loaded.example_inputs))
    root = f"{type(model).__name__}."
    counts = counter.get_flop_counts()
    return {name.removeprefix(root): sum(by.values()) // 2 for name, by in counts.items()}
