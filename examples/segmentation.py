"""Segmentation: a loss and a metric of one's own, dense and compressed networks trained alike.

    python examples/segmentation.py --data CAMVID --epochs 60 --macs 0.5
    python examples/segmentation.py --data CAMVID --network torchvision:deeplabv3_mobilenet_v3_large --epochs 60
    python examples/segmentation.py --data CAMVID --network examples.segmentation:unet --size 192 256 --epochs 60

CAMVID holds train/, val/ and test/ with images, and trainannot/, valannot/ and testannot/ with masks of the same names:
PNG files whose pixels are classes from 0 on; --void says which of them is no class. The network is torchvision's, or a
function that makes one for ``num_classes``; the U-Net here takes sizes that 32 divides, and the package
segmentation-models-pytorch.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import edp_fx
from edp_fx.errors import DataError, EdpError
from edp_fx.models import load_model
from edp_fx.train import Recipe, RichWatcher, Task, Trainer, evaluate

NETWORK = "torchvision:lraspp_mobilenet_v3_large"
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def unet(num_classes: int) -> nn.Module:
    """A U-Net of segmentation-models-pytorch over MobileNetV2, with random weights."""
    import segmentation_models_pytorch as smp

    made: nn.Module = smp.Unet("mobilenet_v2", encoder_weights=None, classes=num_classes)
    return made


def scores(outputs: Any) -> Tensor:
    """[N, classes, H, W], of whatever form the network's outputs are."""
    found: Tensor = outputs["out"] if isinstance(outputs, dict) else outputs
    return found


class Scenes(Dataset[tuple[Tensor, Tensor]]):
    """Images [3, H, W], normalised, and masks [H, W], mirrored at random in training.

    Args:
        root: the folder.
        part: which part of it.
        size: height and width of both; None leaves them as they are.

    Raises:
        DataError: a folder or a mask is missing.
    """

    def __init__(self, root: Path, part: str, size: tuple[int, int] | None = None) -> None:
        self.train, self.size = part == "train", size
        self.images = sorted((root / part).glob("*.*"))
        self.masks = [root / f"{part}annot" / f"{image.stem}.png" for image in self.images]
        if not self.images:
            raise DataError(f"--data {root}: no images in {part}/")
        missing = [mask for mask in self.masks if not mask.exists()]
        if missing:
            raise DataError(f"--data {root}: {missing[0]} is missing: every image of {part}/ needs its mask")

    def __len__(self) -> int:
        return len(self.images)

    def check(self, classes: int, void: int) -> None:
        """Raise DataError for a mask that is unreadable, of another size than its image, or has another class."""
        for image, mask in zip(self.images, self.masks):
            try:
                size, pixels = Image.open(image).size, np.array(Image.open(mask))
            except OSError as error:
                raise DataError(f"{error}: take it and its mask away, or mend it") from error
            if pixels.shape != size[::-1]:
                raise DataError(f"{mask} has the shape {pixels.shape}, its image is {size[1]} high and {size[0]} wide")
            foreign = pixels[(pixels >= classes) & (pixels != void)]
            if len(foreign):
                raise DataError(f"{mask}: the class {foreign[0]} is not below --classes {classes}, nor --void {void}")

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """The image [H, W, 3] and the mask, as bytes."""
        image, mask = Image.open(self.images[index]).convert("RGB"), Image.open(self.masks[index])
        if self.size is not None:
            wide = self.size[::-1]
            image, mask = image.resize(wide, Image.Resampling.BILINEAR), mask.resize(wide, Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(image)), torch.from_numpy(np.array(mask))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pixels, mask = self.read(index)
        image, mask = ((pixels / 255 - MEAN) / STD).permute(2, 0, 1), mask.long()
        if self.train and torch.rand(()) < 0.5:
            image, mask = image.flip(-1), mask.flip(-1)
        return image.contiguous(), mask.contiguous()


class MeanOverlap:
    """Intersection over union of each class, over all images, averaged over the classes that occur.

    Args:
        classes: how many.
        void: label of pixels that do not count.
    """

    name = "mIoU"

    def __init__(self, classes: int, void: int) -> None:
        self.classes, self.void = classes, void
        self.reset()

    def reset(self) -> None:
        """Forget all."""
        self.counts = torch.zeros(self.classes, self.classes, dtype=torch.long)

    def update(self, outputs: Any, masks: Tensor) -> None:
        """Count a batch: scores [N, classes, H, W], masks [N, H, W]."""
        found, true = scores(outputs).argmax(1), masks
        counted = true != self.void
        pairs = true[counted] * self.classes + found[counted]
        self.counts += torch.bincount(pairs.cpu(), minlength=self.classes**2).view(self.classes, self.classes)

    def compute(self) -> float:
        """The mean, in [0, 1]."""
        hit, whole = self.counts.diag(), self.counts.sum(0) + self.counts.sum(1)
        seen = self.counts.sum(1) > 0
        return float((hit / (whole - hit).clamp_min(1))[seen].double().mean())


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, required=True, help="folder with train/, trainannot/, val/ …")
    made.add_argument("--network", default=NETWORK, help="torchvision:NAME, or module.path:function")
    made.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="of images and masks; else as they are")
    made.add_argument("--classes", type=int, default=11)
    made.add_argument("--void", type=int, default=11, help="label of pixels that do not count")
    made.add_argument("--macs", type=float, default=0.5, help="share of the dense network")
    made.add_argument("--epochs", type=int, default=60)
    made.add_argument("--batch-size", type=int, default=8)
    made.add_argument("--workers", type=int, default=0)
    made.add_argument("--out", type=Path, default=Path("segmentation"))
    return made


def run(options: argparse.Namespace) -> None:
    """The whole program."""
    sets = {part: Scenes(options.data, part, options.size) for part in ("train", "val", "test")}
    for scenes in sets.values():
        scenes.check(options.classes, options.void)
    loaders: dict[str, Any] = {
        part: DataLoader(
            scenes, options.batch_size, shuffle=scenes.train, drop_last=scenes.train, num_workers=options.workers
        )
        for part, scenes in sets.items()
    }
    height, width = sets["train"][0][1].shape
    loaded = load_model(options.network, num_classes=options.classes, img_size=(height, width))
    inputs = loaded.example_inputs

    def loss(outputs: Any, masks: Tensor) -> Tensor:
        return F.cross_entropy(scores(outputs), masks, ignore_index=options.void)

    task = Task(loss, MeanOverlap(options.classes, options.void))
    recipe = Recipe(epochs=options.epochs)
    with RichWatcher() as watcher:
        small = edp_fx.compress(
            loaded.model,
            loaders["train"],
            recipe=recipe,
            macs=options.macs,
            val_loader=loaders["val"],
            loss=task.loss,
            metric=task.metric,
            watcher=watcher,
        )
        edp_fx.save(small, options.out, inputs, extra=loaded.facts)
        dense = Trainer(
            edp_fx.trace(loaded.model, inputs),
            loaders["train"],
            recipe,
            val_loader=loaders["val"],
            watcher=watcher,
            title="dense",
            task=task,
        )
        networks = {"dense": dense.run().model, "compressed": small}

    print(f"{'':<12}{'MACs':>9}{'parameters':>12}{'mIoU':>8}")
    for name, network in networks.items():
        cost, score = edp_fx.measure(network, inputs), evaluate(network, loaders["test"], task)
        print(f"{name:<12}{cost.macs / 1e6:>7.0f} M{cost.params / 1e6:>10.2f} M{score.metric:>8.3f}")
    print(f"saved in {options.out}")


def main(arguments: list[str] | None = None) -> int:
    """Run; a wrong use is one line and status 2."""
    try:
        run(parser().parse_args(arguments))
    except EdpError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
