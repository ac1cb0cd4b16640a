"""Segmentation at equal multiplications: street scenes, every method trained alike from random weights.

    python -m benchmarks.segmentation --data CAMVID [--networks NAME,…] [--size 96 128] [--out FILE.jsonl]

CAMVID is a folder as ``examples/segmentation.py`` takes it; images and masks are brought to one size. For each network
the dense one, then for each share of the MACs edp_fx by its default, the uniformly thinner network and Torch-Pruning by
Taylor importance on the same schedule: mean intersection over union on the test images after the last epoch, and
milliseconds of an image under onnxruntime, one thread, against the dense network's in turns. Finished rows are kept.
"""

from __future__ import annotations

import argparse
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import edp_fx
from benchmarks.compression.methods import METHODS
from benchmarks.compression.results import Results, costs, only_one
from benchmarks.compression.trial import Task, Trial, precision
from edp_fx.latency import Meter, make_runtime
from edp_fx.models import load_model
from edp_fx.train import Recipe, evaluate
from edp_fx.train import Task as Goal
from examples.segmentation import MeanOverlap, Scenes, scores

# who makes each, and how many epochs every method trains it
NETWORKS = {
    "lraspp_mobilenet_v3_large": ("torchvision:lraspp_mobilenet_v3_large", 30),
    "deeplabv3_mobilenet_v3_large": ("torchvision:deeplabv3_mobilenet_v3_large", 20),
    "unet_mobilenet_v2": ("examples.segmentation:unet", 12),
}
TARGETS = (0.5, 0.3)
COMPARED = ("edp-budget", "tp-taylor", "thin")
CLASSES, VOID = 11, 11
RESULTS = Path("benchmarks/results/segmentation.jsonl")


@dataclass(frozen=True)
class Setting:
    """Where the images are, how large they are made, and how long every method trains."""

    data: Path
    size: tuple[int, int]
    epochs: int | None  # None: the network's own number
    batch: int = 8


class Kept(Scenes):
    """Scenes that are read once."""

    def __init__(self, setting: Setting, part: str) -> None:
        super().__init__(setting.data, part, setting.size)
        self.all = [super(Kept, self).read(index) for index in range(len(self))]

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """From memory."""
        return self.all[index]


class SegmentationTrial(Trial):
    """A trial whose images are scenes and whose labels are masks."""

    def __init__(self, task: Task, setting: Setting) -> None:
        self.task = task
        self.recipe = Recipe(setting.epochs or NETWORKS[task.network][1], seed=task.seed, mixed_precision=precision())
        scenes = {part: Kept(setting, part) for part in ("train", "test")}
        self.size = setting.size
        self.train: Any = DataLoader(scenes["train"], setting.batch, shuffle=True, drop_last=True)
        self.test: Any = DataLoader(scenes["test"], setting.batch)
        self.example = torch.randn(2, 3, *self.size, generator=torch.Generator().manual_seed(0))
        self.dense = edp_fx.measure(self.network(), self.example)

    @property
    def method(self) -> edp_fx.Method:
        """The default."""
        return edp_fx.Method.preset(macs=self.task.target)

    def network(self) -> nn.Module:
        """The dense network with this seed's weights."""
        made = load_model(NETWORKS[self.task.network][0], num_classes=CLASSES, img_size=self.size, seed=self.task.seed)
        return made.model

    def loss(self, outputs: Any, labels: Tensor) -> Tensor:
        """Cross entropy of the pixels that have a class."""
        return F.cross_entropy(scores(outputs), labels, ignore_index=VOID)

    def is_head(self, layer: nn.Module) -> bool:
        """Convolutions that give the classes."""
        return isinstance(layer, nn.Conv2d) and layer.out_channels == CLASSES


def row(task: Task, setting: Setting) -> dict[str, Any]:
    """Train by the task's method, and measure."""
    trial = SegmentationTrial(task, setting)
    started = time.perf_counter()
    network = METHODS[task.method](trial).cpu().eval()
    seconds = time.perf_counter() - started
    score = evaluate(network, trial.test, Goal(trial.loss, MeanOverlap(CLASSES, VOID)))
    reading = Meter(make_runtime("onnxruntime"), 1, trial.network().eval(), trial.example).compare(network)
    return {
        "miou": score.metric,
        "time_ratio": reading.share,
        "ms": reading.small_ms,
        "size": trial.size,
        "train_images": len(trial.train.dataset),
        "test_images": score.images,
        **costs(trial, network, seconds),
    }


def main() -> None:
    """Measure what the file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--methods", default=",".join(COMPARED))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--size", type=int, nargs=2, default=[96, 128], help="height and width in pixels")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    setting = Setting(options.data, tuple(options.size), options.epochs)
    methods = options.methods.split(",")
    runs = [[("dense", 1.0), *((method, TARGETS[0]) for method in methods)]]
    runs += [[(method, target) for method in methods] for target in TARGETS[1:]]
    tasks = [
        Task(network, method, target, seed)
        for seed in options.seeds
        for some in runs  # the first share of all networks first
        for network in options.networks.split(",")
        for method, target in some
    ]
    with only_one(options.out):
        results = Results(options.out)
        for task in tasks:
            if task not in results.rows:
                results.add(task, row(task, setting))
                print(task, results.rows[task], flush=True)


if __name__ == "__main__":
    main()
