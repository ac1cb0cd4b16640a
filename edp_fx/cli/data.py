"""``edp-fx data``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_SHOWN = 20  # classes in the table; of more, the largest and the smallest


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("data", epilog="Example: edp-fx data PATH")(data)


def data(
    path: Annotated[Path, typer.Argument(help="A folder of images, with or without train/, val/ and test/.")],
    json_path: Annotated[Path | None, typer.Option("--json", help="Write everything as JSON.")] = None,
) -> None:
    """Check a folder of images: classes, counts, sizes, damaged files, duplicates across train, val and test."""
    from rich.console import Console
    from tabulate import tabulate

    from edp_fx.data.check import check_folder, size_range
    from edp_fx.errors import DataError
    from edp_fx.files import check_writable, write_json

    if json_path is not None:
        check_writable(json_path)
    path = Path(str(path).removeprefix("folder:"))
    with Console(stderr=True).status("reading") as status:
        found = check_folder(path, lambda done, count: status.update(f"reading {done} of {count} images"))
    counts, parts = found.counts(), list(found.folder.parts)
    largest_first = sorted(counts.items(), key=lambda one: -sum(one[1].values()))
    shown = list(counts.items())
    if len(counts) > _SHOWN:
        missing: tuple[str, dict[str, int]] = (f"… {len(counts) - _SHOWN} more", {})
        shown = [*largest_first[: _SHOWN // 2], missing, *largest_first[-_SHOWN // 2 :]]
    rows: list[list[object]] = [[name, *(one.get(part, "") for part in parts)] for name, one in shown]
    total = ["all", *(len(files) for files in found.folder.parts.values())]
    typer.echo(tabulate([*rows, total], headers=[f"{len(counts)} classes", *parts]))
    sides = size_range(found.sizes)
    if sides:
        low, middle, high = (sides[name] for name in ("smallest", "median", "largest"))
        typer.echo(f"shorter side: {low:.0f} to {high:.0f} pixels, {middle:.0f} in the middle")
    for file, reason in found.unreadable:
        typer.echo(f"unreadable: {file}: {reason}")
    for one, other in found.duplicates:
        typer.echo(f"the same image: {one} and {other}")
    if json_path is not None:
        write_json(found.to_json(), json_path)
    if found.unreadable:
        raise DataError(f"{len(found.unreadable)} of {len(found.folder)} files are unreadable")
