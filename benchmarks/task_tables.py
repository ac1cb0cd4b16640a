"""The tables of tasks beyond classification: a row a network, method and share of the MACs, seeds averaged."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.rows import read_lines

Row = dict[str, Any]


def task_table(title: str, command: str, note: str, score: str, base: str = "dense") -> Callable[[Path], str]:
    """A section of the page: ``score`` is the key of what is compared with that of the method ``base``, in 0..1."""

    def section(path: Path) -> str:
        rows = read_lines(path)
        table = tabulate(_lines(rows, score, base), headers="keys", tablefmt="github", disable_numparse=True)
        return f"## {title}\n\n`{command}`. {note}\n\n{table}\n"

    return section


def _lines(rows: list[Row], score: str, base: str) -> Iterable[Row]:
    for network in dict.fromkeys(row["network"] for row in rows):
        mine = [row for row in rows if row["network"] == network]
        bases = {row["seed"]: row[score] for row in mine if row["method"] == base}
        shares = sorted({row["target"] for row in mine}, reverse=True)
        for target, method in ((share, name) for share in shares for name in dict.fromkeys(r["method"] for r in mine)):
            cell = [row for row in mine if (row["method"], row["target"]) == (method, target)]
            if not cell:
                continue
            found = [row[score] for row in cell]
            apart = [row[score] - bases[row["seed"]] for row in cell if row["seed"] in bases]
            times = [row["time_ratio"] for row in cell if "time_ratio" in row]
            yield {
                "network": network,
                "method": f"`{method}`",
                "seeds": len(cell),
                "trained": f"{cell[0]['epochs']} epochs" if "epochs" in cell[0] else f"{cell[0]['steps']} steps",
                "MACs": f"{statistics.mean(row['macs_ratio'] for row in cell):.3f}",
                "parameters": f"{statistics.mean(row['params_ratio'] for row in cell):.3f}",
                f"{score} %": f"{100 * statistics.mean(found):.1f}",
                "±": f"{100 * statistics.stdev(found):.1f}" if len(found) > 1 else "",
                f"from {base}": f"{100 * statistics.mean(apart):+.1f}" if apart and method != base else "",
                **({"time": f"{statistics.median(times):.2f}"} if times else {}),
            }


TASKS: dict[str, Callable[[Path], str]] = {
    "trained.jsonl": task_table(
        "From trained weights: small photographs",
        "python -m benchmarks.trained --images 10000",
        "CIFAR-10 as JPEG files, 10,000 of its images to train and 10,000 to test. A dense network of 30 epochs "
        "(`start`; its weights are beside the rows) goes on for 10 epochs by each method: SGD, one cycle to half of "
        "the dense network's rate, the last epoch's accuracy, batch norm statistics anew for all. `+teacher` also "
        "learns from the dense network; `continued` loses nothing. `trained` is the preset without blocks of "
        "channels, as the peers have none; `+NAME=VALUE` changes a setting. `channels`, `kernels`, `ranks`: it may "
        "remove nothing else (`kernels`: besides channels). `one-shot` and `svd` remove all before the first step. "
        "`thin` has 40 epochs from random weights.",
        "accuracy",
        base="continued+teacher",
    ),
    "photographs.jsonl": task_table(
        "From random weights: small photographs",
        "python -m benchmarks.trained --dense-epochs 0 --epochs 20 --images 10000",
        "The same photographs, 20 epochs from random weights: SGD, one cycle, the last epoch's accuracy, batch norm "
        "statistics anew for all. `dense` loses nothing; `scratch` is the preset without blocks of channels. "
        "`+start=A+end=B`: removal from the share A of the run to the share B, of edp_fx and of Torch-Pruning alike; "
        "without it from 0.05 to 0.25. These are 1,580 steps: what is removed before much was learnt is chosen "
        "badly.",
        "accuracy",
    ),
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
