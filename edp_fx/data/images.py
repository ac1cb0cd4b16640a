"""Image files as a data set: read, turned to RGB, transformed by timm's transforms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from edp_fx.data.base import CROPPING, Reading
from edp_fx.errors import DataError, one_line
from edp_fx.extras import need

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Transform = Callable[[Any], Any]


class ImageFiles(Dataset[tuple[Any, int]]):
    """Files with a label each.

    Raises:
        DataError: when a file is read that is damaged; names it.
    """

    def __init__(self, files: Sequence[Path], labels: Sequence[int], transform: Transform) -> None:
        self.files = list(files)
        self.targets = list(labels)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(read_image(self.files[index])), self.targets[index]


def read_image(file: Path) -> Any:
    """A file as an RGB image of PIL. Raises :class:`DataError`, naming the file, where it cannot be read."""
    need("data", "reading image files", "PIL")
    from PIL import Image

    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError and more
        raise DataError(f"{file}: no readable image ({one_line(error)}); remove or replace it") from error


def transforms(how: Reading) -> tuple[Transform, Transform]:
    """Of training images and of the others, from RGB images of PIL to normalised tensors."""
    need("data", "reading image files", "PIL", "timm", "torchvision")
    from timm.data import create_transform

    shared: dict[str, Any] = {
        "input_size": (3, how.img_size, how.img_size),
        "mean": tuple(how.mean or IMAGENET_MEAN),
        "std": tuple(how.std or IMAGENET_STD),
    }
    cropping = {**CROPPING, **how.cropping}
    judge = create_transform(**shared, **cropping, is_training=False)
    if not how.augment:
        return judge, judge
    resized = cropping["interpolation"]
    learn = create_transform(**shared, interpolation=resized, is_training=True, color_jitter=None)
    return learn, judge
