"""Files of results: a CSV of one row a network, filled row by row, so that a script goes on where it stopped."""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from edp_fx.files import whole


def main(
    description: str,
    models: str,
    columns: tuple[str, ...],
    measure: Callable[[str, int], dict[str, object]],
    out: str,
    repeats: int = 3,
) -> list[dict[str, str]]:
    """The command line of such a script: measure on one thread what the file lacks, and give all its rows.

    Args:
        description: of the command; its first line is shown.
        models: names with commas between, where none are given.
        columns: of the file; ``model`` is one.
        measure: the row of a network, from its name and the number of repeats.
        out: the file, where none is given.
        repeats: likewise.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--models", default=models)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--out", type=Path, default=Path(out))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path: Path = arguments.out
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {row["model"] for row in read(path)}
    for name in arguments.models.split(","):
        if name in known:
            continue
        row = measure(name, arguments.repeats)
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)
        print(row, flush=True)
    return read(path)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; none where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def write(path: Path, columns: tuple[str, ...], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the file anew, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def timed(work: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What ``work`` gives for these arguments, and its seconds of processor time."""
    started = time.process_time()
    result = work(*arguments)
    return result, time.process_time() - started
