"""The tables of tasks beyond classification: a row a network, method and share of the MACs, seeds averaged."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.rows import read_lines

Row = dict[str, Any]


def task_table(title: str, command: str, note: str, score: str) -> Callable[[Path], str]:
    """A section of the page: ``score`` is the key of what is compared with the dense network's, in 0..1."""

    def section(path: Path) -> str:
        rows = read_lines(path)
        table = tabulate(_lines(rows, score), headers="keys", tablefmt="github", disable_numparse=True)
        return f"## {title}\n\n`{command}`. {note}\n\n{table}\n"

    return section


def _lines(rows: list[Row], score: str) -> Iterable[Row]:
    for network in dict.fromkeys(row["network"] for row in rows):
        mine = [row for row in rows if row["network"] == network]
        dense = {row["seed"]: row[score] for row in mine if row["method"] == "dense"}
        shares = sorted({row["target"] for row in mine}, reverse=True)
        for target, method in ((share, name) for share in shares for name in dict.fromkeys(r["method"] for r in mine)):
            cell = [row for row in mine if (row["method"], row["target"]) == (method, target)]
            if not cell:
                continue
            found = [row[score] for row in cell]
            apart = [row[score] - dense[row["seed"]] for row in cell if row["seed"] in dense]
            yield {
                "network": network,
                "method": f"`{method}`",
                "seeds": len(cell),
                "trained": f"{cell[0]['epochs']} epochs" if "epochs" in cell[0] else f"{cell[0]['steps']} steps",
                "MACs": f"{statistics.mean(row['macs_ratio'] for row in cell):.3f}",
                "parameters": f"{statistics.mean(row['params_ratio'] for row in cell):.3f}",
                f"{score} %": f"{100 * statistics.mean(found):.1f}",
                "from dense": f"{100 * statistics.mean(apart):+.1f}" if apart and method != "dense" else "",
                "time": f"{statistics.median(row['time_ratio'] for row in cell):.2f}",
            }


TASKS: dict[str, Callable[[Path], str]] = {
    "segmentation.jsonl": task_table(
        "Segmentation: street scenes",
        "python -m benchmarks.segmentation",
        "CamVid's 367 images to train, 233 to test, of 96 x 128 pixels; every method from random weights, on one "
        "schedule; mIoU after the last epoch. Time is onnxruntime's, one thread, against the dense network's in turns; "
        "it computes channels in blocks, so layers cut to any number of channels, as those of `thin` and `tp-taylor`, "
        "can take longer than whole ones.",
        "miou",
    ),
    "detection.jsonl": task_table(
        "Detection: raccoons",
        "python -m benchmarks.detection",
        "160 photographs to train, 40 to test; each detector from random weights, by its own losses; AP50 after the "
        "last epoch, which 40 images tell to some five points: one dense detector differs by 8 to 11 between seeds. "
        "`edp-budget` is the default, `edp-later` removes between a fifth and half of the run (`--removal 0.2 0.5`). "
        "MACs and time are of the parts that are a graph (backbone, pyramid, heads), on two images.",
        "ap50",
    ),
    "tracking.jsonl": task_table(
        "Tracking: one object",
        "python -m benchmarks.tracking",
        "SiamFC at a quarter of AlexNet's width; the mean overlap with the dense tracker's boxes on the last quarter "
        "of the frames, which no tracker was trained on.",
        "overlap",
    ),
}
