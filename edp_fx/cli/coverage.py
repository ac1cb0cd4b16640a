"""``edp-fx coverage``: which models go through which stages."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from edp_fx.errors import EdpError
from edp_fx.files import write

_TIMM, _ZOOS = "coverage.jsonl", "coverage-zoos.jsonl"


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("coverage", epilog="Example: edp-fx coverage resnet18 --stages trace,insert")(coverage)


def coverage(
    models: Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help="Models by name.")] = None,
    filter: Annotated[str | None, typer.Option(metavar="GLOB", help="Models whose name matches.")] = None,
    families: Annotated[
        str | None, typer.Option(metavar="smallest|all", help="One model of every timm family, or all models.")
    ] = None,
    zoo: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Models of another library: pytorchcv, smp, ultralytics, transformers or torchvision (its detectors), "
            "installed by the extra 'zoos'. All, or those named.",
        ),
    ] = None,
    max_params: Annotated[float, typer.Option(help="Bound of --families all, in millions of parameters.")] = 100,
    stages: Annotated[str | None, typer.Option(metavar="A,B", help="Stages to run; default: all.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write coverage.jsonl (coverage-zoos.jsonl with --zoo) and coverage.md; what is recorded is not "
            "run again. Without a choice of models only coverage.md is written anew.",
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write JSON lines.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Models at a time, one thread each.")] = 1,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds a model may take.")] = 300,
    memory: Annotated[float, typer.Option(min=0.5, help="GiB a model may take.")] = 12,
) -> None:
    """Put models through the stages, one process each, and write down what passes and what does not."""
    from rich.console import Console
    from tabulate import tabulate

    from edp_fx.coverage.catalog import choose
    from edp_fx.coverage.runner import sweep
    from edp_fx.coverage.table import failures, markdown, stage_names, summary
    from edp_fx.coverage.table import models as model_rows

    names = _stages(stages, zoo)
    path = out / (_ZOOS if zoo else _TIMM) if out else json_file
    recorded = _recorded(path) if out and path else {}
    chosen = bool(models or filter or families or zoo)
    entries = choose(models or (), filter, families, max_params * 1e6, zoo) if chosen or not recorded else []
    waiting = [entry for entry in entries if not all(name in recorded.get(entry.name, ()) for name in names)]
    records: list[dict[str, Any]] = [recorded[e.name] for e in entries if e not in waiting]
    if path:
        _write(path, recorded)
    console = Console(stderr=True)
    if len(waiting) < len(entries):
        console.print(f"{len(entries) - len(waiting)} models are recorded in {path} already")
    for number, record in enumerate(sweep(waiting, names, jobs=jobs, timeout=timeout, memory=memory), 1):
        records.append(record)
        recorded[record["model"]] = {**recorded.get(record["model"], {}), **record}
        if path:
            with path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        seconds = sum(record[name]["seconds"] for name in ("build", *names))
        failed = failures([record])
        verdict = "; ".join(f"{stage}: {reason}" for _, stage, reason in failed) or "ok"
        console.print(
            f"[{number}/{len(waiting)}] {record['model']} {seconds:.1f} s {verdict}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if out and path:
        _write(path, recorded)
        found = [[*_recorded(out / name).values()] for name in (_TIMM, _ZOOS)]
        pages = {"coverage.md": markdown(*found), "coverage-models.md": model_rows(*found)}
        write({out / name: text.encode() for name, text in pages.items()})
        records = records or [*recorded.values()]
    print(tabulate(_rows(records), headers=["model", "params (M)", *stage_names(records)], floatfmt=".1f"))
    print()
    print(tabulate(summary(records)))


def _stages(wanted: str | None, zoo: str | None) -> list[str]:
    from edp_fx.coverage.stages import STAGES

    every = [name for name in STAGES if zoo is None or name != "engine"]
    names = every if wanted is None else [name.strip() for name in wanted.split(",") if name.strip()]
    for name in names:
        if name not in STAGES:
            raise EdpError(f"--stages: {name!r} is not a stage; choose from {', '.join(STAGES)}")
    return names


def _recorded(path: Path) -> dict[str, dict[str, Any]]:
    """The records of earlier runs by model, later rows of a model over earlier ones; a torn last line is dropped."""
    found: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            found[record["model"]] = {**found.get(record["model"], {}), **record}
    return found


def _write(path: Path, records: dict[str, dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write({path: "".join(json.dumps(record) + "\n" for record in records.values()).encode()})


def _rows(records: list[dict[str, Any]]) -> list[list[Any]]:
    from edp_fx.coverage.table import stage_names

    def mark(record: dict[str, Any], name: str) -> str:
        return "yes" if record[name]["ok"] else record[name]["reason"][:60]

    return [
        [r["model"], (r["params"] or 0) / 1e6, *(mark(r, n) for n in stage_names(records) if n in r)] for r in records
    ]
