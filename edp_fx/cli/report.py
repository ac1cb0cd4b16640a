"""``edp-fx report``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("report", epilog="Example: edp-fx report small")(report)


def report(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="The --out of edp-fx compress; the run may still go.")
    ],
    json_path: Annotated[Path | None, typer.Option("--json", help="Write what the page shows as JSON.")] = None,
) -> None:
    """Write a page and plots of a training run into its directory."""
    from rich.console import Console

    from edp_fx.files import check_writable, whole
    from edp_fx.report.run_data import read_run
    from edp_fx.report.run_page import run_page
    from edp_fx.report.run_plots import write_plots
    from edp_fx.summary import print_report

    run = read_run(directory)
    page = directory / "report.html"
    for path in (page, json_path):
        if path is not None:
            check_writable(path)
    with whole(page) as part:
        part.write_text(run_page(run, directory.resolve().name), encoding="utf-8")
    written = [page]
    try:
        written += write_plots(run, directory)
        note = ""
    except ImportError:
        note = "no PNGs: matplotlib is not installed (pip install matplotlib)"
    if json_path is not None:
        with whole(json_path) as part:
            part.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
        written.append(json_path)
    if run["report"] is not None:
        print_report(run["report"], Console())
    else:
        print(f"{directory}: not finished, {len(run['compressed']['epochs'])} epochs recorded")
    for path in written:
        print(f"wrote {path}")
    if note:
        print(note)
