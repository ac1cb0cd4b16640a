"""What a loaded data set looks like, and the order in which its training images come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from edp_fx.errors import DataError, one_line

CROPPING = {"interpolation": "bilinear", "crop_pct": 0.875, "crop_mode": "center"}
SPLITS = ("train", "val", "test", "all")


@dataclass
class Data:
    """Loaders of (images [N, C, H, W] float32, labels [N] int64) batches.

    Nothing is ever chosen on ``test``.

    Attributes:
        name: the specification it was loaded by.
        loaders: by name, of :data:`SPLITS`: train, val, test, and all of the images without augmentation.
        num_classes: how many classes there are; None where the images have no classes.
        in_chans: channels of the images.
        img_size: side of the images in pixels.
        splits: in one line, how train, validation and test were made.
        mean: per channel, what was subtracted.
        std: per channel, what was divided by then.
        classes: names in the order of the labels; empty where the source has none.
        lacking: why a loader is missing, and what to do.
        cropping: how image files were brought to that size: ``interpolation``, ``crop_pct``, ``crop_mode``.
    """

    name: str
    loaders: dict[str, DataLoader[Any]]
    num_classes: int | None
    in_chans: int
    img_size: int
    splits: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...] = ()
    lacking: str = "the data set has no such part"
    cropping: Mapping[str, Any] = field(default_factory=dict)

    def loader(self, split: str) -> DataLoader[Any]:
        """The loader of a split. Raises :class:`DataError` where the data set has none."""
        if split not in SPLITS:
            raise DataError(f"split {split!r}: unknown; take one of {', '.join(SPLITS)}")
        if split not in self.loaders:
            raise DataError(f"--data {self.name}: no images for {split}: {self.lacking}")
        return self.loaders[split]

    @property
    def train(self) -> DataLoader[Any]:
        """Images to train on, augmented."""
        return self.loader("train")

    @property
    def val(self) -> DataLoader[Any]:
        """Images to validate on."""
        return self.loader("val")

    @property
    def test(self) -> DataLoader[Any]:
        """Images that judge the result."""
        return self.loader("test")

    def describe(self) -> str:
        """Classes, size, normalisation and splits, a line each."""
        names = ", ".join(self.classes[:5]) + (", …" if len(self.classes) > 5 else "")
        classes = f", {self.num_classes} classes" if self.num_classes is not None else ""
        lines = [f"data: {self.name}{classes}" + (f" ({names})" if names else "")]
        if self.mean:
            normal = f"mean {_short(self.mean)}, deviation {_short(self.std)}{_in_words(self.cropping)}"
            lines.append(f"images: {self.img_size} x {self.img_size} pixels, {self.in_chans} channels; {normal}")
        return "\n".join([*lines, f"splits: {self.splits}"])


def _short(values: Sequence[float]) -> str:
    return ", ".join(f"{one:.3f}" for one in values)


def _in_words(cropping: Mapping[str, Any]) -> str:
    if not cropping:
        return ""
    what = "squashed" if cropping["crop_mode"] == "squash" else f"{100 * cropping['crop_pct']:.1f} % of the side"
    return f"; {cropping['interpolation']}, {what}"


@dataclass(frozen=True)
class Reading:
    """How image files are read: batch size, side in pixels, seed of the order, processes, normalisation, and how they
    are brought to that size (:data:`CROPPING` for what is not said; in training ``interpolation`` alone counts)."""

    batch_size: int
    img_size: int
    seed: int
    workers: int
    augment: bool = True
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    cropping: Mapping[str, Any] = field(default_factory=dict)


class EpochSampler(Sampler[int]):
    """A permutation that depends on (seed, epoch) alone, so a resumed run sees the same order."""

    def __init__(self, dataset: Any, seed: int = 0) -> None:
        self.dataset = dataset
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation, and with it the data set's augmentation where it has any."""
        self.epoch = epoch
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self))
        return iter(order.tolist())


def _as_is(batch: Any) -> Any:
    return batch


class Loader(DataLoader[Any]):
    """A DataLoader whose processes' errors are one line."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except DataError as error:
            raise DataError(one_line(error)) from error


def make_loader(
    dataset: Dataset[Any], batch_size: int, *, train: bool, seed: int = 0, workers: int = 0
) -> DataLoader[Any]:
    """A loader whose training order is a function of (seed, epoch), the last short batch dropped.

    A data set with ``__getitems__`` that returns whole batches (``batched = True``) is not collated again.
    """
    batched = bool(getattr(dataset, "batched", False))
    size = len(dataset)  # type: ignore[arg-type]
    return Loader(
        dataset,
        batch_size=min(batch_size, size),
        sampler=EpochSampler(dataset, seed) if train else None,
        num_workers=0 if batched else workers,
        collate_fn=_as_is if batched else None,
        drop_last=train,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=False,
    )


def stratified_split(labels: NDArray[Any], shares: tuple[float, ...], seed: int = 0) -> list[NDArray[np.int64]]:
    """Indices of ``len(shares) + 1`` disjoint parts: the rest first, then one part a share.

    Every class gives ``round(share * its size)`` images to each part, at least one where it has enough.
    The split is a function of (labels, shares, seed) alone.
    """
    rng = np.random.default_rng(seed)
    parts: list[list[NDArray[np.int64]]] = [[] for _ in range(len(shares) + 1)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        start = 0
        for number, share in enumerate(shares, 1):
            count = max(1, round(share * len(members))) if len(members) > len(shares) else 0
            parts[number].append(members[start : start + count])
            start += count
        parts[0].append(members[start:])
    return [np.sort(np.concatenate(part)) for part in parts]
