"""Images with boxes in Pascal VOC's files, and AP50 of what a detector finds in them.

A directory has ``images/NAME.jpg`` and ``annotations/NAME.xml``.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.ops import box_iou

from edp_fx.errors import DataError

Target = dict[str, Tensor]
_SIDES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Annotation:
    """An image's file, and its boxes [n, 4] as x1, y1, x2, y2 in pixels with their classes' names."""

    image: Path
    boxes: list[tuple[float, float, float, float]]
    names: list[str]


def read_annotations(directory: Path, classes: Sequence[str] = ()) -> list[Annotation]:
    """All annotations of a directory, in the order of their names.

    Raises DataError naming the file: nothing to read, no such image, a box without area or outside of its image, or a
    class that is not among ``classes`` where these are given.
    """
    files = sorted((directory / "annotations").glob("*.xml"))
    if not files:
        raise DataError(f"{directory} has no annotations/*.xml: --data takes a directory with images/ and annotations/")
    return [_read(file, directory / "images", classes) for file in files]


def _read(file: Path, images: Path, classes: Sequence[str]) -> Annotation:
    try:
        root = ET.parse(file).getroot()
        image = images / (root.findtext("filename") or f"{file.stem}.jpg")
        size = [float(root.findtext(f"size/{name}") or "nan") for name in ("width", "height")]
        boxes, names = [], []
        for one in root.iter("object"):
            x1, y1, x2, y2 = (
                float(one.findtext(f"bndbox/{side}") or "nan") for side in ("xmin", "ymin", "xmax", "ymax")
            )
            boxes.append((x1, y1, x2, y2))
            names.append(one.findtext("name") or "")
    except (ET.ParseError, ValueError) as error:
        raise DataError(f"{file} is no VOC annotation: {error}") from error
    if not image.is_file():
        raise DataError(f"{file} is of {image}, which does not exist: add the image, or take the annotation away")
    for box, name in zip(boxes, names):
        x1, y1, x2, y2 = box
        if not (0 <= x1 < x2 <= size[0] + 1 and 0 <= y1 < y2 <= size[1] + 1):
            raise DataError(f"{file}: the box {box} of {name!r} has no area in an image of {size[0]:g}x{size[1]:g}")
        if classes and name not in classes:
            raise DataError(f"{file}: the class {name!r} is not among {', '.join(classes)}: correct it or --classes")
    return Annotation(image, boxes, names)


def split(annotations: Sequence[Annotation], every: int = 5) -> tuple[list[Annotation], list[Annotation]]:
    """(training, test): each fifth image is for testing.

    Raises DataError for a class that is in test images only, or where there are too few.
    """
    train = [one for index, one in enumerate(annotations) if index % every]
    test = [one for index, one in enumerate(annotations) if index % every == 0]
    if not train or not any(one.boxes for one in train):
        raise DataError(f"{len(annotations)} images are too few: at least 2 with boxes are needed")
    unseen = {name for one in test for name in one.names} - {name for one in train for name in one.names}
    if unseen:
        raise DataError(f"the class {sorted(unseen)[0]!r} is in test images only: add images of it, or leave it out")
    return train, test


class Boxes(Dataset[tuple[Tensor, Target]]):
    """Images [3, H, W] of 0..1 with torchvision's targets; class 0 is the background."""

    def __init__(self, annotations: Sequence[Annotation], classes: Sequence[str], flip: bool = False) -> None:
        self.annotations, self.flip = list(annotations), flip
        self.labels = {name: index for index, name in enumerate(classes, 1)}

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        from torchvision.io import ImageReadMode, decode_image

        one = self.annotations[index]
        try:
            image = decode_image(str(one.image), ImageReadMode.RGB).float() / 255
        except RuntimeError as error:
            raise DataError(f"{one.image} cannot be read as an image: {error}") from error
        boxes = torch.tensor(one.boxes, dtype=torch.float32).reshape(-1, 4)
        if self.flip and torch.rand(()) < 0.5:
            image, width = image.flip(2), image.shape[2]
            boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
        labels = torch.tensor([self.labels[name] for name in one.names], dtype=torch.int64)
        return image, {"boxes": boxes, "labels": labels}


def collate(rows: list[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    """A batch as torchvision's detectors take it."""
    images, targets = zip(*rows)
    return list(images), list(targets)


def average_precision(found: Sequence[Target], wanted: Sequence[Target], iou: float = 0.5) -> float:
    """The mean over classes of the area below precision against recall, over all images, in 0..1.

    A box counts as found by the one of highest score that overlaps it by ``iou`` or more (VOC 2010 and later).
    """
    labels = sorted({int(label) for target in wanted for label in target["labels"]})
    return sum(_of_class(found, wanted, label, iou) for label in labels) / max(1, len(labels))


def _of_class(found: Sequence[Target], wanted: Sequence[Target], label: int, iou: float) -> float:
    hits: list[tuple[float, bool]] = []
    total = 0
    for one, target in zip(found, wanted, strict=True):
        mine = one["labels"] == label
        order = one["scores"][mine].argsort(descending=True)
        scores, boxes = one["scores"][mine][order], one["boxes"][mine][order]
        truth = target["boxes"][target["labels"] == label]
        total += len(truth)
        overlaps, taken = box_iou(boxes, truth), torch.zeros(len(truth), dtype=torch.bool)
        for score, row in zip(scores, overlaps):
            best = int(row.argmax()) if len(truth) else -1
            hit = best >= 0 and float(row[best]) >= iou and not taken[best]
            if hit:
                taken[best] = True
            hits.append((float(score), bool(hit)))
    if not hits or not total:
        return 0.0
    right = torch.tensor([hit for _, hit in sorted(hits, key=lambda one: -one[0])], dtype=torch.float64)
    recall = right.cumsum(0) / total
    precision = right.cumsum(0) / torch.arange(1, len(right) + 1)
    precision = precision.flip(0).cummax(0).values.flip(0)
    return float((recall.diff(prepend=torch.zeros(1, dtype=torch.float64)) * precision).sum())
