"""Image files: class folders and torchvision's data sets, through timm's transforms."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Subset

from edp_fx.data.base import Data, Reading, make_loader, stratified_split
from edp_fx.errors import DataError

SPLIT_SEED = 0
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def folder_data(root: Path, how: Reading) -> Data:
    """Class folders: ``root/train/CLASS/*`` with val/ (or validation/) and test/, or ``root/CLASS/*``.

    What is missing is split off the training images, stratified, with a fixed seed: 10% for validation,
    20% for test where there is neither val/ nor test/; a lone val/ serves as test.
    """
    from torchvision.datasets import ImageFolder

    if not root.is_dir():
        raise DataError(f"--data folder:{root}: no such directory")
    learn, judge = _transforms(how)

    def open_folder(path: Path, transform: Any) -> Any:
        try:
            return ImageFolder(str(path), transform=transform)
        except (FileNotFoundError, OSError) as error:
            raise DataError(f"--data folder:{root}: {error}") from error

    train_dir = root / "train"
    if not train_dir.is_dir():
        pair = (open_folder(root, learn), open_folder(root, judge))
        return _split(pair, None, f"folder:{root}", root, how)
    pair = (open_folder(train_dir, learn), open_folder(train_dir, judge))
    others = {name: root / name for name in ("val", "validation", "test") if (root / name).is_dir()}
    held = others.get("test") or others.get("val") or others.get("validation")
    test = open_folder(held, judge) if held else None
    val_dir = others.get("val") or others.get("validation")
    val = open_folder(val_dir, judge) if val_dir and val_dir != held else None
    for part in (test, val):
        if part is not None and part.classes != pair[0].classes:
            raise DataError(f"--data folder:{root}: {part.root} and {train_dir} have different class folders")
    if val is not None and test is not None:
        text = f"{len(pair[0])} / {len(val)} / {len(test)} for train / validation / test, as the folders say"
        return _bundle(pair[0], val, test, len(pair[0].classes), f"folder:{root}", text, how)
    return _split(pair, test, f"folder:{root}", root, how)


def torchvision_data(name: str, root: Path, how: Reading) -> Data:
    """A classification data set of torchvision that already lies in ``root`` (its own layout)."""
    import torchvision.datasets

    kinds = {key.lower(): key for key in torchvision.datasets.__all__}
    if name.lower() not in kinds:
        near = difflib.get_close_matches(name.lower(), kinds, n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(kinds[key] for key in near)}?" if near else ""
        raise DataError(f"--data torchvision:{name}: torchvision has no such data set{hint}")
    kind = getattr(torchvision.datasets, kinds[name.lower()])
    learn, judge = _transforms(how)
    takes = inspect.signature(kind.__init__).parameters

    def build(part: str, transform: Any) -> Any:
        options: dict[str, Any] = {"transform": transform}
        if "train" in takes:
            options["train"] = part == "train"
        elif "split" in takes:
            options["split"] = part
        elif part != "train":
            return None
        return kind(str(root), **options)

    try:
        pair = (build("train", learn), build("train", judge))
    except Exception as error:
        raise DataError(f"--data torchvision:{name}:{root}: {_first_line(error)}; is the data there?") from error
    test = None
    for part in ("test", "val"):
        try:
            test = build(part, judge)
            break
        except Exception:
            continue
    return _split(pair, test, f"torchvision:{name}", root, how)


def _transforms(how: Reading) -> tuple[Callable[..., Any], Callable[..., Any]]:
    from timm.data import create_transform

    shared: dict[str, Any] = {
        "input_size": (3, how.img_size, how.img_size),
        "mean": tuple(how.mean or IMAGENET_MEAN),
        "std": tuple(how.std or IMAGENET_STD),
    }
    judge = create_transform(**shared, is_training=False)
    learn = create_transform(**shared, is_training=True, color_jitter=None) if how.augment else judge
    return _Rgb(learn), _Rgb(judge)


class _Rgb:
    """Images of any mode as RGB, then the transform."""

    def __init__(self, transform: Callable[..., Any]) -> None:
        self.transform = transform

    def __call__(self, image: Any) -> Any:
        return self.transform(image.convert("RGB"))


def _split(
    pair: tuple[Any, Any],
    test: Any | None,
    name: str,
    root: Path,
    how: Reading,
) -> Data:
    learn, judge = pair
    labels = _labels(learn)
    if len(labels) < 10:
        raise DataError(f"--data {name}: {len(labels)} images in {root} are too few to split")
    shares = (0.1,) if test is not None else (0.1, 0.2)
    parts = stratified_split(labels, shares, SPLIT_SEED)
    counts = [len(part) for part in parts]
    if test is None:
        test = Subset(judge, parts[2].tolist())
        text = f"{' / '.join(map(str, counts))} for train / validation / test, stratified, seed {SPLIT_SEED}"
    else:
        text = (
            f"{counts[0]} / {counts[1]} of the training images for train / validation, stratified, seed "
            f"{SPLIT_SEED}; the {len(test)} held-out images for test"
        )
    train, val = Subset(learn, parts[0].tolist()), Subset(judge, parts[1].tolist())
    classes = int(labels.max()) + 1
    return _bundle(train, val, test, classes, name, text, how)


def _bundle(
    train: Dataset[Any],
    val: Dataset[Any],
    test: Dataset[Any],
    classes: int,
    name: str,
    text: str,
    how: Reading,
) -> Data:
    options: dict[str, Any] = {"seed": how.seed, "workers": how.workers}
    return Data(
        name,
        make_loader(train, how.batch_size, train=True, **options),
        make_loader(val, how.batch_size, train=False, **options),
        make_loader(test, how.batch_size, train=False, **options),
        num_classes=classes,
        in_chans=3,
        img_size=how.img_size,
        splits=text,
    )


def _labels(dataset: Any) -> np.ndarray[Any, Any]:
    for attribute in ("targets", "labels", "_labels", "_samples", "samples"):
        values = getattr(dataset, attribute, None)
        if values is not None:
            if len(values) and isinstance(values[0], tuple):
                values = [value[-1] for value in values]
            return np.asarray(values).astype(np.int64)
    return np.asarray([int(dataset[index][1]) for index in range(len(dataset))])


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
