"""The table a person reads at the end of ``edp-fx compress``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edp_fx.refusal import Refusal, by_reason


def comparison_rows(report: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(what, dense, compressed, compressed / dense) as text; a dash where a figure is missing."""
    dense, small = report["dense"], report["compressed"]
    rows = []
    for key, label, show in (
        ("macs", "MACs", _count),
        ("params", "parameters", _count),
        ("file_bytes", "weights file", _bytes),
        ("metric", f"test {report['judged_by']}", lambda value: shown(report, value)),
        ("latency_ms", "onnxruntime latency, batch 1", _milliseconds),
        ("engine_bytes", "engine", _bytes),
    ):
        a, b = dense.get(key), small.get(key)
        if a is None and b is None:
            continue
        if key == "metric":
            change = gained(report, a, b) if a is not None and b is not None else "-"
        else:
            change = f"{b / a:.3f}" if a and b is not None else "-"
        rows.append((label, _or_dash(a, show), _or_dash(b, show), change))
    return rows


def notes(report: Mapping[str, Any]) -> list[str]:
    """The lines below the table: what pruning and merging changed, the files, what was refused and why."""
    difference = report["prune_merge"]["max_rel_diff"]
    lines = [
        f"pruning and merging changed the outputs by at most {difference:.1e} (relative)",
        f"onnx: {report['onnx']['path']}, at most {report['onnx']['max_abs_diff']:.1e} from torch",
    ]
    asked = report.get("latency_budget")
    if asked:
        lines.append(_timing(asked))
    engine = report.get("engine")
    if engine:
        lines.append(f"engine: {engine['path']} ({_bytes(engine['bytes'])}) by {engine['builder']}")
    # kinds of removal that the method left out by itself are in the report; here it is about the network
    network = [entry for entry in report["refused"] if not entry["node"].startswith("kind ")]
    reasons = by_reason(Refusal(entry["node"], entry["reason"]) for entry in network)
    lines += [f"left alone: {reason}" for reason in reasons]
    if not reasons:
        lines.append("nothing was refused")
    return lines


def _timing(told: Mapping[str, Any]) -> str:
    """Asked, predicted and measured, as shares of the dense network's time."""
    text = (
        f"latency on {told['device']} under {told['runtime']}, batch {told['batch']}: asked {told['asked']:.3f} of the "
        f"dense network's, predicted {told['predicted']:.3f}, "
    )
    if told["measured"] is None:
        return text + f"not measured: {told['reason']}"
    text += f"measured {told['measured']:.3f} ({told['compressed_ms']:.3f} of {told['dense_ms']:.3f} ms)"
    return text if told["met"] else text + f": missed by {100 * told['missed']:+.0f} %"


def print_report(report: Mapping[str, Any], console: Any) -> None:
    """The comparison and the notes on ``console`` (rich)."""
    from rich.table import Table

    run = report["run"]
    table = Table(title=f"{run['model']['spec']} on {report['data']['name']}, {run['recipe']['epochs']} epochs")
    table.add_column("")
    for column in ("dense", "compressed", "ratio"):
        table.add_column(column, justify="right")
    for row in comparison_rows(report):
        table.add_row(*row)
    console.print(table)
    for line in notes(report):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _or_dash(value: Any, show: Any) -> str:
    return "-" if value is None else show(value)


def _count(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.2f} {unit}"
    return f"{value:.0f}"


def _bytes(value: float) -> str:
    return f"{value / 1e6:.2f} MB" if value >= 1e6 else f"{value / 1e3:.1f} kB"


def shown(report: Mapping[str, Any], value: float) -> str:
    """A metric as text: accuracy in per cent, others as they are."""
    return f"{100 * value:.2f} %" if report["judged_by"] == "accuracy" else f"{value:.4f}"


def gained(report: Mapping[str, Any], dense: float, small: float) -> str:
    """By how much a metric differs, as text."""
    change = small - dense
    return f"{100 * change:+.2f} points" if report["judged_by"] == "accuracy" else f"{change:+.4f}"


def _milliseconds(value: float) -> str:
    return f"{value:.3f} ms"
