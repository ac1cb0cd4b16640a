"""The file of results: one JSON line a finished task, appended whole, read back to know what is done."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

import edp_fx
from benchmarks.compression.methods import ALIGNED, GRADUAL, METHODS, WEIGHED
from benchmarks.compression.trial import Images, Setting, Task, Trial
from edp_fx.cost import POSITION, TRAFFIC
from edp_fx.errors import EdpError
from edp_fx.lowering.latency import onnx_latency
from edp_fx.train import evaluate

PACKAGES = ("torch", "timm", "torch-pruning", "onnxruntime")


class Results:
    """Lines by task.

    Raises:
        EdpError: a line that is no JSON and not the last one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[Task, dict[str, Any]] = {}
        text = path.read_text() if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                row = json.loads(line)
                self.rows[Task(row["network"], row["method"], row["target"], row["seed"])] = row
            except (ValueError, KeyError) as error:
                raise EdpError(f"{path}:{number}: not a line of results ({error}); remove it") from error
        if whole != text:  # a line that was being written when the machine stopped
            path.write_text(whole)

    def add(self, task: Task, row: dict[str, Any]) -> None:
        """Append a line; it is on the disk when this returns."""
        line = json.dumps(asdict(task) | row) + "\n"
        with open(self.path, "a") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.rows[task] = json.loads(line)


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Hold ``path`` against a second process: it would run the same tasks and spoil the timings.

    Raises:
        EdpError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise EdpError(f"{path}: another process is writing to it") from error
        yield


def clock() -> float:
    """Seconds of the processor where one thread does all the work, of the wall elsewhere; others use the machine."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.process_time() if alone else time.perf_counter()


def run(task: Task, setting: Setting, images: Images, *, alone: bool) -> dict[str, Any]:
    """Train by the task's method and measure the network after its last epoch, its latency only where it runs alone."""
    trial = Trial(task, setting, images)
    started = clock()
    model = METHODS[task.method](trial)
    seconds = clock() - started
    device = next(model.parameters()).device
    score = evaluate(model, trial.test)
    model = model.cpu().eval()
    if not isinstance(model, fx.GraphModule):  # activation memory depends on when values are let go: alike for all
        model = edp_fx.trace(model, trial.example)
    cost = edp_fx.measure(model, trial.example)
    latency = onnx_latency({"it": model}, trial.example[:1])["it"].median_ms if alone else None
    return {
        "macs": cost.macs,
        "macs_ratio": cost.macs / trial.dense.macs,
        "params": cost.params,
        "params_ratio": cost.params / trial.dense.params,
        "accuracy": score.accuracy,
        "test_images": score.images,
        "latency_ms": latency,
        "activation_bytes": cost.activation_bytes,
        "seconds": round(seconds, 1),
        "epochs": setting.epochs,
        "train_images": len(images.train),
        "precision": trial.recipe.mixed_precision,
        "layout": "nhwc",  # loop.LAYOUT; rows of before may have others
        "removing": [trial.method.start, trial.method.end] if task.method in GRADUAL else None,
        "traffic": TRAFFIC if task.method in WEIGHED else None,
        "position": POSITION if task.method in WEIGHED else None,
        "align": trial.method.align if task.method in ALIGNED else None,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "versions": {
            "edp_fx": edp_fx.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
    }


def costs(trial: Trial, network: nn.Module, seconds: float) -> dict[str, Any]:
    """What a row of another table says of a trained network's cost, and of where it trained."""
    cost = edp_fx.measure(network.cpu().eval(), trial.example)
    return {
        "macs_ratio": cost.macs / trial.dense.macs,
        "params_ratio": cost.params / trial.dense.params,
        "seconds": round(seconds, 1),
        "epochs": trial.recipe.epochs,
        "precision": trial.recipe.mixed_precision,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
    }
