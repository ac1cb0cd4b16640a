"""Where the images come from: one function a kind of source, chosen by the text before the first colon."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from edp_fx.data.arrays import ArrayDataset
from edp_fx.data.base import Data, Reading, make_loader, stratified_split
from edp_fx.data.folders import folder_data
from edp_fx.data.idx import read_fashion_mnist
from edp_fx.data.splitting import SPLIT_SEED
from edp_fx.data.torchvision_sets import torchvision_data
from edp_fx.errors import DataError
from edp_fx.extras import need

DATA_HELP = (
    "digits (scikit-learn's 1,797 images, nothing to download); fashion-mnist (looked for in data/FashionMNIST/raw, "
    "~/.cache/edp_fx, ~/.local/share/datasets, /usr/local/share/datasets and /usr/share/datasets, where Debian's "
    "package dataset-fashion-mnist puts it, else downloaded by torchvision); "
    "folder:PATH (train/CLASS/*.jpg, optionally val/ and test/; CLASS/*.jpg; or CLASS_anything.jpg side by side); "
    "torchvision:NAME:PATH (a data set class of torchvision found in PATH)"
)
KINDS = ("digits", "fashion-mnist", "folder:PATH", "torchvision:NAME:PATH")


def check_spec(spec: str) -> None:
    """Raise :class:`DataError` where ``spec`` names no kind of data set or misses its path. Reads nothing."""
    kind, _, rest = spec.partition(":")
    if kind in ("digits", "fashion-mnist") and not rest:
        return
    if kind == "folder" and rest:
        return
    if kind == "torchvision" and ":" in rest and all(rest.split(":", 1)):
        return
    near = difflib.get_close_matches(spec, KINDS, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise DataError(f"--data {spec}: unknown data set; take one of {', '.join(KINDS)}{hint}")


def load_data(
    spec: str,
    *,
    batch_size: int = 64,
    img_size: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    augment: bool = True,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    interpolation: str | None = None,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
) -> Data:
    """Load a data set by its one-line specification (see :data:`DATA_HELP`).

    Args:
        spec: ``digits``, ``fashion-mnist``, ``folder:PATH`` or ``torchvision:NAME:PATH``.
        batch_size: images a batch (over all processes together).
        img_size: side of the square images in pixels; the source's own default where None.
        seed: order and augmentation of the training images. The split is fixed and does not depend on it.
        workers: processes that read image files; as many as there are processor cores where None.
        augment: shift, crop or mirror training images where that keeps their meaning.
        mean: per-channel mean of the normalisation; the source's own where None.
        std: likewise the standard deviation.
        interpolation: by which image files are brought to that size: ``bilinear`` where None.
        crop_pct: the side of what is cut out of the middle over that of the whole; 0.875 where None.
        crop_mode: ``center``; ``squash`` cuts nothing and keeps no proportions; ``border`` pads.

    Raises:
        DataError: unknown specification, missing or unreadable files.
    """
    check_spec(spec)
    kind, _, rest = spec.partition(":")
    if batch_size < 1:
        raise DataError(f"--batch-size {batch_size}: give a number from 1 on")
    if workers is None:
        workers = os.cpu_count() or 1
    asked = {"interpolation": interpolation, "crop_pct": crop_pct, "crop_mode": crop_mode}
    cropping = {key: value for key, value in asked.items() if value is not None}
    how = Reading(batch_size, img_size or 224, seed, workers, augment, mean, std, cropping)
    if kind == "folder":
        return folder_data(Path(rest), how)
    if kind == "torchvision":
        name, _, path = rest.partition(":")
        return torchvision_data(name, Path(path), how)
    source = _digits if kind == "digits" else _fashion_mnist
    parts, classes, splits, flip = source()
    size = img_size or 32
    parts = {name: (_resize(images, size), labels) for name, (images, labels) in parts.items()}
    train = parts["train"][0]
    mean = tuple(mean or (float(train.mean()),))
    std = tuple(std or (float(train.std()),))
    parts["all"] = tuple(map(torch.cat, zip(*parts.values())))  # type: ignore[assignment]

    def loader(split: str, images: Tensor, labels: Tensor) -> Any:
        learn = augment and split == "train"
        dataset = ArrayDataset(
            images,
            labels,
            mean=mean,
            std=std,
            shift=max(1, size // 16) if learn else 0,
            flip=flip and learn,
            seed=seed,
        )
        size_ = batch_size if split == "train" else max(batch_size, 128)
        return make_loader(dataset, size_, train=split == "train", seed=seed)

    loaders = {split: loader(split, *part) for split, part in parts.items()}
    return Data(kind, loaders, 10, 3, size, splits, mean, std, classes)


Part = tuple[Tensor, Tensor]


FASHION = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def _digits() -> tuple[dict[str, Part], tuple[str, ...], str, bool]:
    need("data", "--data digits", "sklearn")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.asarray(bunch.images, dtype=np.float32)[:, None] / 16.0
    labels = np.asarray(bunch.target)
    parts = stratified_split(labels, (0.1, 0.2), SPLIT_SEED)
    counts = " / ".join(str(len(part)) for part in parts)
    text = f"1,797 images in {counts} for train / validation / test, stratified by class, seed {SPLIT_SEED}"
    named = {name: _part(images, labels, part) for name, part in zip(("train", "val", "test"), parts)}
    return named, tuple("0123456789"), text, False


def _fashion_mnist() -> tuple[dict[str, Part], tuple[str, ...], str, bool]:
    train, test, where = read_fashion_mnist()
    images, labels = train
    rest, val = stratified_split(labels, (0.1,), SPLIT_SEED)
    scaled = images[:, None].astype(np.float32) / 255.0
    test_images = test[0][:, None].astype(np.float32) / 255.0
    everything = np.arange(len(test[1]))
    parts = {
        "train": _part(scaled, labels, rest),
        "val": _part(scaled, labels, val),
        "test": _part(test_images, test[1], everything),
    }
    text = (
        f"{len(rest)} / {len(val)} of the training images for train / validation, stratified by class, seed "
        f"{SPLIT_SEED}; the {len(everything)} test images for test; from {where}"
    )
    return parts, FASHION, text, True


def _part(images: NDArray[np.float32], labels: NDArray[Any], index: NDArray[np.int64]) -> Part:
    return torch.from_numpy(images[index]), torch.from_numpy(labels[index].astype(np.int64))


def _resize(images: Tensor, size: int) -> Tensor:
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False).clamp_(0, 1)
