"""The coverage report: totals, what failed and why, and a row a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

Record = dict[str, Any]
_META = ("model", "family", "params", "build")


def stage_names(records: Iterable[Record]) -> list[str]:
    """The stages that occur in the records, in their order: that of the record with the most."""
    names: dict[str, None] = {}
    for record in sorted(records, key=len, reverse=True):
        names.update({key: None for key in record if key not in _META})
    return list(names)


def passed(record: Record) -> bool:
    """Whether a model came through every stage it was put to."""
    return all(record[name]["ok"] for name in stage_names([record]))


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / whole:.1f}%)" if whole else "0 of 0"


def failures(records: list[Record]) -> list[tuple[str, str, str]]:
    """Model, stage and reason of every failure that is not a consequence of an earlier one."""
    found = []
    for record in records:
        for name in ("build", *stage_names([record])):
            result = record.get(name)
            if result and not result["ok"] and result["reason"] != "not reached":
                found.append((record["model"], name, result["reason"]))
    return found


def summary(records: list[Record]) -> list[tuple[str, str]]:
    """Totals as label and value."""
    names = stage_names(records)
    rows = [("models", str(len(records)))]
    rows += [
        (f"stage {name}", _share(sum(r[name]["ok"] for r in records if name in r), sum(name in r for r in records)))
        for name in names
    ]
    families: dict[str, list[bool]] = defaultdict(list)
    for record in records:
        families[record["family"]].append(passed(record))
    rows.append(
        ("families with every stage passed by some model", _share(sum(map(any, families.values())), len(families)))
    )
    traced = [r["trace"] for r in records if r.get("trace", {}).get("layers")]
    if traced:
        layers, visible = (sum(t[key] for t in traced) for key in ("layers", "visible"))
        rows.append(("convolution and linear layers visible as nodes", _share(visible, layers)))
        rows.append(("models with an opaque module", str(sum(bool(t.get("opaque")) for t in traced))))
    inserted = [r["insert"] for r in records if "layers" in r.get("insert", {})]
    if inserted:
        rows.append(("layers made pairs", str(sum(i["layers"] for i in inserted))))
        rows.append(("layers refused, each with a reason", str(sum(i["refused"] for i in inserted))))
    analyzed = [r["analyze"] for r in records if "prunable_share" in r.get("analyze", {})]
    if analyzed:
        for key, label in (("prunable_share", "prunable"), ("exact_share", "exact among the prunable")):
            mean = sum(a[key] for a in analyzed) / len(analyzed)
            rows.append((f"output channels {label}, mean over models", f"{mean:.1%}"))
    return rows


def _cell(record: Record, name: str) -> str:
    result = record.get(name)
    if result is None:
        return ""
    if not result["ok"]:
        return "–" if result["reason"] == "not reached" else "**no**"
    if name == "analyze":
        shares = f"{result['prunable_share']:.0%}, {result['exact_share']:.0%}"
        return f"{result['groups']} groups, {shares}, {result['analyze_seconds']:.1f} s"
    if name == "engine":
        return ", ".join(f"{result[precision]['bytes'] / 1e6:.1f} MB" for precision in ("fp32", "fp16"))
    difference = result.get("max_rel_diff", result.get("max_diff"))
    if difference is None:
        return "yes"
    precision = result.get("precision", "")
    ratio = f"at MACs {result['macs_ratio']:.2f}" if "macs_ratio" in result else ""
    return " ".join(filter(None, (f"{difference:.0e}", precision, ratio)))


_INTRODUCTION = """\
# Coverage

Made by `edp-fx coverage … --out DIR`; all figures of every stage, the reasons of refused layers among them, are in
`coverage.jsonl`. Each model is built with random weights at the smallest image size it takes, everything an
initialisation leaves constant (norm statistics, gammas, layer scales, biases) made random and dropout turned on, and
is compared at a batch size other than the one traced. A blank is a stage that was not run for the model.

- **trace**, **insert**: the largest difference of outputs in eval mode, of outputs, input gradients and buffers in
  train mode with the same seed, relative to the largest value; `fp64` marks models that amplify single rounding errors
  beyond 1e-5 in float32 (batch norm over few samples, kinks) and are compared in float64.
- **train_step**: one optimiser step of the graph in train mode.
- **analyze**: groups; the share of the output channels of convolutions and linear layers that can be pruned, and
  the share of these whose removal is exact; seconds.
- **sound**: pruning against masked execution in float64, three random keep-sets, in σ of the output.
- **prune_merge**: half of the exact channels and ranks zeroed, pruned and merged: relative change of the outputs in
  float32, and the MACs left.
- **onnx**: that network under onnxruntime against torch at three batch sizes, in σ of the output.
- **engine**: its TensorRT-RTX engines in fp32 and fp16, bytes.
"""


def markdown(records: list[Record], zoos: list[Record] | None = None) -> str:
    """What a person reads: totals, what does not pass, and a row a family, in Markdown.

    Args:
        records: one a model, as the runner gives them.
        zoos: the same of other libraries' models, which get a section of their own.
    """
    records = sorted(records, key=lambda r: (r["family"], r["model"]))
    lines = [
        _INTRODUCTION,
        "| | |",
        "|---|---|",
        *(f"| {label} | {value} |" for label, value in summary(records)),
        "",
        "## What does not pass",
        "",
    ]
    failed = failures(records)
    if failed:
        lines += ["| model | stage | reason |", "|---|---|---|"]
        lines += [f"| {m} | {s} | {reason.replace('|', '/')} |" for m, s, reason in failed]
    else:
        lines.append("Nothing.")
    opaque = [(r["model"], one) for r in records for one in r.get("trace", {}).get("opaque") or []]
    if opaque:
        lines += ["", "## Modules kept whole", "", "| model | module and reason |", "|---|---|"]
        lines += [f"| {model} | {one.replace('|', '/')} |" for model, one in opaque]
    lines += ["", "## Families", "", "Every model has a row in [coverage-models.md](coverage-models.md).", ""]
    lines += _families(records)
    if zoos:
        lines += ["", *_zoo_lines(zoos)]
    return "\n".join(lines) + "\n"


def models(records: list[Record], zoos: list[Record] | None = None) -> str:
    """A row for each model, in Markdown; arguments as of :func:`markdown`."""
    made = "Made by `edp-fx coverage … --out DIR`; [coverage.md](coverage.md) says what the columns are."
    lines = ["# Coverage, model by model", "", made]
    for title, some in (("timm and torchvision", records), ("Other libraries", zoos or [])):
        if some:
            ordered = sorted(some, key=lambda r: (r["family"], r["model"]))
            lines += ["", f"## {title}", "", *_rows(ordered, stage_names(ordered))]
    return "\n".join(lines) + "\n"


def _families(records: list[Record]) -> list[str]:
    families: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        families[record["family"]].append(record)
    lines = ["| family | models | pass every stage they were put to | channels prunable | exact among these |"]
    lines.append("|---|---:|---:|---:|---:|")
    for family, some in sorted(families.items()):
        analyzed = [r["analyze"] for r in some if "prunable_share" in r.get("analyze", {})]
        shares = [
            f"{sum(one[key] for one in analyzed) / len(analyzed):.0%}" if analyzed else ""
            for key in ("prunable_share", "exact_share")
        ]
        lines.append(f"| {family} | {len(some)} | {sum(map(passed, some))} | {' | '.join(shares)} |")
    return lines


def _rows(records: list[Record], names: list[str]) -> list[str]:
    lines = [f"| model | family | params (M) | px | visible | {' | '.join(names)} |"]
    lines.append("|---|---|---:|---:|---:|" + "---|" * len(names))
    for record in records:
        trace = record.get("trace", {})
        visible = f"{trace['visible']}/{trace['layers']}" if "visible" in trace else ""
        lines.append(
            f"| {record['model']} | {record['family']} | {(record['params'] or 0) / 1e6:.1f} "
            f"| {record['build'].get('size', '')} | {visible} | {' | '.join(_cell(record, n) for n in names)} |"
        )
    return lines


_OF_ZOOS = """\
## Models of other libraries

Made by `edp-fx coverage --zoo NAME --out DIR` (`pip install 'edp_fx[zoos]'`); all figures are in
`coverage-zoos.jsonl`. A model passes when every stage up to ONNX passes, by the same measures as above. What is put
through the stages is the model as its library makes it, with these exceptions: of torchvision's detectors it is
the backbone with its feature pyramid and the dense head as one network (`torchvision_zoo.DenseDetector`), since
resizing, anchors, suppression and the heads of single regions are no network on a batch; of transformers, models from
small configurations. A module kept whole is one whose own Python cannot be a graph: its layers stay as they are.
"""


def _zoo_lines(records: list[Record]) -> list[str]:
    records = sorted(records, key=lambda r: (r["family"], r["model"]))
    lines = [_OF_ZOOS, "| library | models | pass | died | with a module kept whole | layers visible |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    families: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        families[record["family"]].append(record)
    for family, some in [*families.items(), ("all", records)]:
        traced = [r["trace"] for r in some if r.get("trace", {}).get("layers")]
        lines.append(
            f"| {family} | {len(some)} | {_share(sum(map(passed, some)), len(some))} "
            f"| {sum('died' in reason for _, _, reason in failures(some))} "
            f"| {sum(bool(t.get('opaque')) for t in traced)} "
            f"| {_share(sum(t['visible'] for t in traced), sum(t['layers'] for t in traced))} |"
        )
    missed = failures(records)
    if missed:
        lines += ["", "| model that does not pass | stage | reason |", "|---|---|---|"]
        lines += [f"| {m} | {s} | {reason.replace('|', '/')} |" for m, s, reason in missed]
    return lines
