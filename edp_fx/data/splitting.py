"""Train, validation and test from what a source has: what is missing is split off the training images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset, Dataset, Subset

from edp_fx.data.base import CROPPING, Data, Reading, make_loader, stratified_split
from edp_fx.data.images import IMAGENET_MEAN, IMAGENET_STD

SPLIT_SEED = 0  # the split belongs to the data set: it does not follow --seed
VAL, TEST = 0.1, 0.2


def split_up(
    name: str,
    learn: Dataset[Any] | None,
    judged: Mapping[str, Dataset[Any]],
    labels: NDArray[np.int64],
    classes: tuple[str, ...],
    how: Reading,
) -> Data:
    """A data set whose missing parts are split off the training images: stratified, with a fixed seed.

    Args:
        name: of the data set.
        learn: the training images, augmented; None where there are none.
        judged: parts without augmentation, by name: ``train`` (the same images as ``learn``), ``val``, ``test``. A
            lone ``val`` serves as test.
        labels: of the training images [N].
        classes: names in the order of the labels.
        how: batch size and the rest.

    Returns:
        What can be made of it: a part that would be empty is missing, and the result says why.
    """
    parts: dict[str, Dataset[Any]] = {}
    held = {key: one for key, one in judged.items() if key != "train"}
    if "test" not in held and "val" in held:
        held["test"] = held.pop("val")
    parts |= held
    lacking = "it has no training images"
    text = " / ".join(f"{_count(one)} {key}" for key, one in held.items()) + ", as the folders say"
    if learn is not None:
        shares = {key: share for key, share in (("val", VAL), ("test", TEST)) if key not in held}
        split = stratified_split(labels, tuple(shares.values()), SPLIT_SEED)
        few = sorted({classes[label] for label in np.unique(labels) if (labels == label).sum() <= len(shares)})
        lacking = (
            f"{len(few)} of {len(classes)} classes have too few images to split ({', '.join(few[:3])}); give folders "
            "train/, val/ and test/, or more images"
        )
        if not shares:
            parts["train"] = learn
            text = f"{_count(learn)} train, {text}"
        elif all(len(part) for part in split):
            parts["train"] = Subset(learn, split[0].tolist())
            parts |= {key: Subset(judged["train"], one.tolist()) for key, one in zip(shares, split[1:])}
            counts = " / ".join(f"{len(one)} {key}" for key, one in zip(("train", *shares), split))
            text = f"{counts}, split off the training images, stratified, seed {SPLIT_SEED}" + (
                f"; {text}" if held else ""
            )
        else:
            text = f"{_count(learn)} images, not split" + (f"; {text}" if held else "")
    loaders = {
        key: make_loader(part, how.batch_size, train=key == "train", seed=how.seed, workers=how.workers)
        for key, part in {**parts, "all": ConcatDataset(list(judged.values()))}.items()
    }
    return Data(
        name,
        loaders,
        num_classes=len(classes),
        in_chans=3,
        img_size=how.img_size,
        splits=text,
        mean=tuple(how.mean or IMAGENET_MEAN),
        std=tuple(how.std or IMAGENET_STD),
        classes=classes,
        lacking=lacking,
        cropping={**CROPPING, **how.cropping},
    )


def _count(dataset: Dataset[Any]) -> int:
    return len(dataset)  # type: ignore[arg-type]
