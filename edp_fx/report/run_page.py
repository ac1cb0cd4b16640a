"""The page of a training run: curves, decisions, layers, refusals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from edp_fx.refusal import Refusal, by_reason
from edp_fx.report.page import page
from edp_fx.summary import comparison_rows, gained, shown

_UNITS = {"macs": "MACs", "params": "parameters", "latency": "latency"}


def run_page(run: dict[str, Any], name: str) -> str:
    """One self-contained HTML document that shows ``run``.

    Args:
        run: what :func:`edp_fx.report.run_data.read_run` gives.
        name: of the run, for the title where it has no report yet.
    """
    report = run["report"]
    title = f"{report['run']['model']['spec']} on {report['data']['name']}" if report else f"{name}: not finished"
    parts = [
        f"<header><h1>{escape(title)}</h1>{_verdict(run)}</header>",
        f'<div class="two">{_comparison(report)}{_facts(report)}</div>' if report else "",
        _charts(run),
        _layers(run["layers"]),
        _decisions(run),
        _refused(report),
    ]
    data = {key: run[key] for key in ("metric", "target", "events", "compressed", "dense")}
    return page(
        title,
        "<main>" + "".join(parts) + "</main>",
        styles=("base.css", "uPlot.min.css", "run.css"),
        scripts=("uPlot.iife.min.js", "run.js"),
        data={**data, "unit": _UNITS[run["metric"]]},
    )


def _verdict(run: dict[str, Any]) -> str:
    """The result in a sentence."""
    report = run["report"]
    if report is None:
        epochs = run["compressed"]["epochs"]
        return f"<p>No report yet: {len(epochs)} epochs are recorded.</p>"
    ratio = report["macs_ratio"]
    said = f"{100 * ratio:.1f}% of the dense network's MACs"
    if run["target"] is not None:
        said += f", budget {100 * run['target']:g}% of {_UNITS[run['metric']]}"
    dense, small = report["dense"]["metric"], report["compressed"]["metric"]
    if small is not None:
        said += f". Test {run['judged_by']} {shown(report, small)}"
        if dense is not None:
            said += f", {gained(report, dense, small)} against the dense network trained alike"
    return f"<p>{escape(said)}.</p>"


def _comparison(report: dict[str, Any]) -> str:
    rows = [[escape(cell) for cell in row] for row in comparison_rows(report)]
    return _section("Dense and compressed", _table(("", "dense", "compressed", "ratio"), rows, numbers=(1, 2, 3)))


def _charts(run: dict[str, Any]) -> str:
    if not run["compressed"]["loss"]["step"]:
        return _section("Training", "<p>Nothing was trained: the layers were cut by their singular values.</p>")
    charts = "".join(
        f'<figure><figcaption>{label}</figcaption><div class="chart" id="{key}"></div></figure>'
        for key, label in (
            ("loss", "Training loss"),
            ("accuracy", f"Validation {run['judged_by']}"),
            ("cost", f"{_UNITS[run['metric']]}, share of dense"),
        )
    )
    return _section("Training", f'<div class="charts">{charts}</div>')


def _layers(layers: Sequence[dict[str, Any]]) -> str:
    if not layers:
        return ""
    known = [value for layer in layers for value in layer["macs"] if value is not None]
    most = max(known, default=0) or 1
    rows = []
    for layer in layers:
        before, after = layer["macs"]
        cells = [f'<span class="mono">{escape(layer["name"])}</span>', _form(layer)]
        cells += [_kept(*layer[key]) for key in ("outputs", "inputs")]
        old, new = layer["rank"]
        left = (
            "one kernel a channel" if layer["form"] in ("separate", "pointwise") else "merged" if new is None else new
        )
        cells.append("" if old is None else f"{old} → {left}")
        cells += [_count(before), _count(after)]
        cells.append("" if not before or after is None else f"{after / before:.2f}")
        cells.append(_bars(before or 0, after or 0, most))
        rows.append(cells)
    heads = ("layer", "form", "outputs", "inputs", "rank", "MACs before", "after", "ratio", "")
    names = ("merged", "pair", "plain", "separate", "pointwise", "gone")
    forms = {form: sum(layer["form"] == form for layer in layers) for form in names}
    said = ", ".join(f"{count} {form}" for form, count in forms.items() if count)
    note = (
        f"<p>{len(layers)} layers: {said}. A pair is kept as two layers; merged ones are one layer again; "
        "separate ones are a depthwise and a pointwise convolution, pointwise ones lost the former; gone ones went "
        "with their residual branch, or into the pointwise layer behind them.</p>"
    )
    table = _table(heads, rows, numbers=(2, 3, 4, 5, 6, 7), sortable=True)
    return _section("Layers", note + f'<div class="wide">{table}</div>')


def _form(layer: dict[str, Any]) -> str:
    return f'<span class="tag {escape(layer["form"])}">{escape(layer["form"])}</span>'


def _kept(old: int, new: int) -> str:
    return f"{old}" if old == new else f"{old} → {new}" if new else f"{old} → gone"


def _bars(before: int, after: int, most: int) -> str:
    def bar(kind: str, value: int) -> str:
        return f'<i class="{kind}" style="width:{100 * value / most:.2f}%"></i>'

    return f'<span class="bars">{bar("was", before)}{bar("is", after)}</span>'


def _decisions(run: dict[str, Any]) -> str:
    events = run["events"]
    if not events:
        return ""
    rows = []
    for event in events:
        shrunk = event.get("event") == "shrink"
        what = ("shrunk and merged" if event.get("merged") else "shrunk") if shrunk else str(event.get("event", ""))
        rows.append(
            [
                str(event.get("step", "")),
                escape(what),
                _share(event.get("goal")),
                _whole(event.get("removed")),
                _whole(event.get("left")),
                _share(event.get("cost")),
                "" if event.get("max_rel_diff") is None else f"{event['max_rel_diff']:.1e}",
                "" if event.get("seconds") is None else f"{event['seconds']:.2f}",
            ]
        )
    unit = _UNITS[run["metric"]]
    heads = ("step", "what", f"goal, {unit}", "removed", "left", f"{unit} after", "outputs changed by", "seconds")
    count = sum(event.get("event") == "decision" for event in events)
    removed = sum(event.get("removed") or 0 for event in events)
    note = (
        f"<p>{count} decisions doomed {removed:,} elements (ranks and channels); the network was rebuilt smaller "
        f"{len(events) - count} times.</p>"
    )
    table = _table(heads, rows, numbers=(0, 2, 3, 4, 5, 6, 7))
    return _section("What was decided when", note + f'<div class="wide tall">{table}</div>')


def _refused(report: dict[str, Any] | None) -> str:
    if report is None:
        return ""
    reasons = by_reason(Refusal(entry["node"], entry["reason"]) for entry in report["refused"])
    if not reasons:
        return _section("Left alone", "<p>Nothing was refused.</p>")
    items = []
    for reason in reasons:
        names, count = (
            ", ".join(f'<span class="mono">{escape(node)}</span>' for node in reason.nodes),
            len(reason.nodes),
        )
        names = names if count <= 8 else f"<details><summary>{count} places</summary>{names}</details>"
        items.append(f"<dt>{escape(reason.text)}</dt><dd>{names}</dd>")
    return _section("Left alone, and why", f"<dl>{''.join(items)}</dl>")


def _facts(report: dict[str, Any]) -> str:
    pairs: list[tuple[str, Any]] = [
        ("data", report["data"].get("splits")),
        ("image side", report["data"].get("img_size")),
        ("method", _settings(report["run"]["method"])),
        ("recipe", _settings(report["run"]["recipe"])),
        ("pruning and merging", f"outputs changed by at most {report['prune_merge']['max_rel_diff']:.1e} (relative)"),
        ("ONNX", f"{report['onnx']['path']}, at most {report['onnx']['max_abs_diff']:.1e} from torch"),
    ]
    engine = report.get("engine")
    pairs.append(("engine", f"{engine['path']} by {engine['builder']}" if engine else None))
    for key, label in (("seconds", "seconds"), ("versions", "versions")):
        pairs.append((label, ", ".join(f"{name} {value}" for name, value in report.get(key, {}).items())))
    items = (f"<dt>{label}</dt><dd>{escape(str(value))}</dd>" for label, value in pairs if value not in (None, ""))
    return _section("The run", f'<dl class="facts">{"".join(items)}</dl>')


def _settings(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _table(heads: Iterable[str], rows: Iterable[Sequence[str]], numbers: Sequence[int], sortable: bool = False) -> str:
    """An HTML table; cells are HTML already. ``numbers``: columns set flush right."""

    def row(tag: str, cells: Iterable[str]) -> str:
        kinds = (' class="n"' if place in numbers else "" for place in range(99))
        return "<tr>" + "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells)) + "</tr>"

    head = row("th", [f"<button>{escape(one)}</button>" if sortable and one else escape(one) for one in heads])
    body = "".join(row("td", cells) for cells in rows)
    return f"<table{' data-sort' if sortable else ''}><thead>{head}</thead><tbody>{body}</tbody></table>"


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _whole(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
