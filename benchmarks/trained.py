"""From trained weights at equal multiplications: every method goes on from the same dense network.

    python -m benchmarks.trained --data FOLDER [--networks resnet20,resnet56] [--methods NAME,…]
        [--targets 0.5 0.3 0.15] [--seeds 0 1 2] [--dense-epochs 30] [--epochs 10] [--images N] [--out FILE.jsonl]

FOLDER holds CIFAR-10 as torchvision keeps it, or ``train.npz`` and ``test.npz`` of small photographs as JPEG files:
``data``, all files one after another, ``lens``, their lengths in bytes, and ``labels``. A dense network is trained once
for each network and kept beside the file of rows. Then each method goes on from it for the same epochs at half of its
learning rate, to each share of its MACs. ``+teacher`` learns from the dense network besides; ``+lr=0.1``, or any other
field of the recipe or the method, changes it. ``thin`` starts from random weights, with the epochs of both. Accuracy is
of the last epoch, on the test images, batch norm statistics anew for all. Finished rows are kept.

``--dense-epochs 0``: from random weights at the whole rate; ``dense`` is the whole network, ``scratch`` the preset.
"""

from __future__ import annotations

import argparse
import copy
import io
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.datasets import CIFAR10

import edp_fx
from benchmarks.compression.loop import fit
from benchmarks.compression.methods import METHODS
from benchmarks.compression.results import Results, costs, only_one
from benchmarks.compression.trial import NETWORKS, Task, Trial, precision, resnet
from edp_fx import Method
from edp_fx.data import ArrayDataset, make_loader
from edp_fx.inputs import device_of
from edp_fx.one_shot import one_shot
from edp_fx.train import Recipe, Teacher, Trainer, evaluate
from edp_fx.train.statistics import renew_statistics
from examples import networks

SIDE, CLASSES, BATCH = 32, 10, 128
# at full width, for a GPU: what published figures are of
FULL = {"resnet56-full": lambda: resnet(9, width=16), "vgg16": networks.vgg16_bn, "densenet40": networks.densenet40}
MAKERS: dict[str, Callable[[], nn.Module]] = {**NETWORKS, **FULL}
MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
TARGETS = (0.5, 0.3, 0.15)
WHOLE = ("continued", "dense")  # nothing is removed
RESULTS = Path("benchmarks/results/trained.jsonl")
FROM_RANDOM = RESULTS.with_name("photographs.jsonl")


def parts(method: str) -> tuple[str, bool, dict[str, str]]:
    """``NAME+teacher+FIELD=VALUE…``: the name, whether a teacher teaches, and what of method or recipe is changed."""
    name, *rest = method.split("+")
    return name, "teacher" in rest, dict(one.split("=", 1) for one in rest if one != "teacher")


def at_once(trial: Trial, preset: str) -> nn.Module:
    """All that goes before the first step, by images for ``one-shot``, by singular values for ``truncate``."""
    gm = edp_fx.trace(trial.network(), trial.example)
    images = None if preset == "truncate" else ((images,) for images, _ in trial.train)
    method = Method.preset(preset, macs=trial.task.target)
    if preset == "one-shot":
        method = method.changed(align=trial.method.align)
    return fit(one_shot(gm, (trial.example,), method, images).gm, trial)


COMPARED: dict[str, Callable[[Trial], nn.Module]] = {
    "trained": METHODS["edp-budget"],
    "scratch": METHODS["edp-budget"],
    "one-shot": lambda trial: at_once(trial, "one-shot"),
    "channels": METHODS["edp-channels"],
    "kernels": METHODS["edp-kernels"],
    "ranks": METHODS["edp-ranks"],
    "svd": lambda trial: at_once(trial, "truncate"),
    "tp-taylor": METHODS["tp-taylor"],
    "tp-group-norm": METHODS["tp-group-norm"],
    "slimming": METHODS["slimming"],
    "thin": METHODS["thin"],
}
DEFAULT = (
    "continued", "continued+teacher", "trained+teacher", "one-shot+teacher", "tp-taylor+teacher", "trained",
    "tp-taylor", "tp-group-norm", "channels+teacher", "kernels+teacher", "ranks+teacher", "svd+teacher", "slimming",
    "thin",
)  # fmt: skip

FROM_RANDOM_DEFAULT = ("dense", "scratch", "tp-taylor", "thin")


@dataclass(frozen=True)
class Setting:
    """How long: epochs of the dense network, and of what goes on from it; how many images of each part (None: all)."""

    dense_epochs: int
    epochs: int
    images: int | None


@dataclass(frozen=True)
class Photographs:
    """Normalised; train shifted by up to four pixels and mirrored, test as it is."""

    train: ArrayDataset
    test: ArrayDataset

    @classmethod
    def load(cls, folder: Path, setting: Setting) -> Photographs:
        """Read both parts."""
        read = _of_torchvision if (folder / CIFAR10.base_folder).is_dir() else _of_files
        train = _part(*read(folder, "train"), setting.images, shift=4, flip=True, seed=0)
        return cls(train, _part(*read(folder, "test"), setting.images))


def _part(images: Any, labels: Any, count: int | None, **augmentation: Any) -> ArrayDataset:
    order = np.random.default_rng(0).permutation(len(labels))[:count]  # they may be sorted by class
    pixels = torch.from_numpy(np.stack([_decoded(images[one]) for one in order])).permute(0, 3, 1, 2)
    known = torch.from_numpy(np.asarray(labels, dtype=np.int64)[order])
    return ArrayDataset(pixels.contiguous() / 255, known, mean=MEAN, std=STD, **augmentation)


def _of_torchvision(folder: Path, part: str) -> tuple[Any, Any]:
    stored = CIFAR10(str(folder), train=part == "train")
    return stored.data, stored.targets


def _of_files(folder: Path, part: str) -> tuple[Any, Any]:
    stored = np.load(folder / f"{part}.npz")
    ends, data = np.cumsum(stored["lens"]), stored["data"]
    return [data[end - length : end].tobytes() for end, length in zip(ends, stored["lens"])], stored["labels"]


def _decoded(file: Any) -> Any:
    if not isinstance(file, bytes):
        return file
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image.convert("RGB"))


class TrainedTrial(Trial):
    """A trial that goes on from a dense network."""

    def __init__(self, task: Task, setting: Setting, photographs: Photographs, dense: nn.Module | None) -> None:
        name, taught, changes = parts(task.method)
        self.task, self._dense = task, dense
        of_recipe = {one: Recipe.checked(one, text) for one, text in changes.items() if one in Recipe.names()}
        self._changes = {one: Method.checked(one, text) for one, text in changes.items() if one not in of_recipe}
        recipe = Recipe(setting.epochs, optimizer="sgd", seed=task.seed, mixed_precision=precision())
        scratch = recipe.changed(epochs=setting.epochs + setting.dense_epochs)
        self.recipe = scratch if name == "thin" else recipe.changed(**of_recipe).tuning(self.method.pace)
        self.train = make_loader(photographs.train, BATCH, train=True, seed=task.seed)
        self.test = make_loader(photographs.test, 500, train=False)
        self.example = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
        self.dense = edp_fx.measure(self.network(), self.example)
        if taught and dense is not None:
            self.teacher = Teacher(dense, self.method.distill, self.method.temperature)

    @property
    def method(self) -> Method:
        """The preset for trained weights, or for random ones, channels one by one as by the others."""
        preset = "scratch" if self._dense is None else "trained"
        method = Method.preset(preset, macs=self.task.target, align=1, removals=Method().decisions)
        return method.changed(**self._changes)

    def network(self) -> nn.Module:
        """The dense network with its trained weights, or with this seed's random ones."""
        if self._dense is not None:
            return copy.deepcopy(self._dense)
        torch.manual_seed(self.task.seed)
        return MAKERS[self.task.network]()


def dense_network(name: str, setting: Setting, photographs: Photographs, folder: Path) -> nn.Module:
    """Trained once, and kept in ``folder``."""
    torch.manual_seed(0)
    network, path = MAKERS[name](), folder / f"trained-{name}-{setting.dense_epochs}.pt"
    if not path.exists():
        recipe = Recipe(setting.dense_epochs, optimizer="sgd", mixed_precision=precision())
        gm = edp_fx.trace(network, torch.randn(2, 3, SIDE, SIDE))
        trained = Trainer(gm, make_loader(photographs.train, BATCH, train=True, seed=0), recipe).run().model.cpu()
        torch.save(trained.state_dict(), path)
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()


def row(task: Task, setting: Setting, photographs: Photographs, dense: nn.Module | None) -> dict[str, Any]:
    """Go on by the task's method, and measure."""
    trial = TrainedTrial(task, setting, photographs, dense)
    started = time.perf_counter()
    if task.method == "start":
        network = trial.network()
    elif task.target == 1:
        network = fit(trial.network(), trial)
    else:
        network = COMPARED[parts(task.method)[0]](trial)
    if task.method != "start":
        renew_statistics(network, ((images.to(device_of(network)),) for images, _ in trial.train))
    seconds = time.perf_counter() - started
    score = evaluate(network, trial.test)
    return {
        "accuracy": score.accuracy,
        "dense_epochs": setting.dense_epochs,
        "train_images": len(photographs.train),
        "test_images": score.images,
        **costs(trial, network, seconds),
        **({"epochs": 0} if task.method == "start" else {}),
    }


def main() -> None:
    """Measure what the file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--networks", default="resnet20,resnet56", help=f"of {', '.join(MAKERS)}")
    parser.add_argument("--methods")
    parser.add_argument("--targets", nargs="*", type=float, default=TARGETS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--dense-epochs", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    trained = options.dense_epochs > 0
    methods = options.methods.split(",") if options.methods else list(DEFAULT if trained else FROM_RANDOM_DEFAULT)
    for method in methods:
        name, taught, _ = parts(method)
        if name not in (*COMPARED, *WHOLE):
            parser.error(f"--methods {method}: give one of {', '.join((*WHOLE, *COMPARED))}")
        if taught and not trained:
            parser.error(f"--methods {method}: from random weights there is no teacher")
    out = options.out or (RESULTS if trained else FROM_RANDOM)
    runs = [(method, 1.0) for method in methods if parts(method)[0] in WHOLE]
    runs += [(method, target) for target in options.targets for method in methods if (method, 1.0) not in runs]
    setting = Setting(options.dense_epochs, options.epochs, options.images)
    photographs = Photographs.load(options.data, setting)
    with only_one(out):
        results = Results(out)
        for network in options.networks.split(","):
            dense = dense_network(network, setting, photographs, out.parent) if trained else None
            tasks = [Task(network, "start", 1.0, 0)] if trained else []
            tasks += [Task(network, method, target, seed) for seed in options.seeds for method, target in runs]
            for task in tasks:
                if task not in results.rows:
                    results.add(task, row(task, setting, photographs, dense))
                    print(task, results.rows[task], flush=True)


if __name__ == "__main__":
    main()
