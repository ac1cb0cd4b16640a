"""Image folders as people have them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edp_fx.data.base import Data, Reading
from edp_fx.data.images import ImageFiles, transforms
from edp_fx.data.splitting import split_up
from edp_fx.errors import DataError

PART_NAMES = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "tst"),
}
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Folder:
    """What lies in a folder of images.

    Attributes:
        root: the folder.
        classes: names, sorted; their order is that of the labels.
        parts: by part (``train``, ``val``, ``test``), its files with a label each. A folder without parts is all
            ``train``.
    """

    root: Path
    classes: tuple[str, ...]
    parts: dict[str, list[tuple[Path, int]]]

    def __len__(self) -> int:
        return sum(map(len, self.parts.values()))


def read_folder(root: Path) -> Folder:
    """Find the images of a folder. Nothing is decoded.

    Three forms: ``PART/CLASS/*.jpg`` with parts by their usual names (train or training, val, valid or validation,
    test …), any of which may be missing; ``CLASS/*.jpg``; and images side by side named ``CLASS_anything.jpg``, as
    ImageNet names its files.

    Raises:
        DataError: no such folder, no images, or parts with different classes.
    """
    name = f"--data folder:{root}"
    if not root.is_dir():
        raise DataError(f"{name}: no such directory")
    found = {part: _class_folders(path) for part, path in _part_folders(root).items()}
    if not found:
        inside = _class_folders(root) or _by_name(root)
        if not inside:
            raise DataError(f"{name}: {_what_is_missing(root)}")
        found = {"train": inside}
    classes = tuple(sorted(next(iter(found.values()))))
    for part, files in found.items():
        if tuple(sorted(files)) != classes:
            odd = sorted(set(files) ^ set(classes))
            first = next(iter(found))
            raise DataError(
                f"{name}: {first} and {part} have different class folders: {', '.join(odd[:3])}"
                + (f" and {len(odd) - 3} more" if len(odd) > 3 else "")
                + " only in one of them"
            )
    if len(classes) < 2:
        raise DataError(f"{name}: one class only ({classes[0]}); a classifier needs two")
    parts = {
        part: [(file, label) for label, one in enumerate(classes) for file in files[one]]
        for part, files in found.items()
    }
    return Folder(root, classes, parts)


def folder_data(root: Path, how: Reading) -> Data:
    """The images of a folder in train, validation and test; see :func:`read_folder` and
    :func:`~edp_fx.data.splitting.split_up`."""
    folder = read_folder(root)
    learn, judge = transforms(how)
    judged = {
        part: ImageFiles([file for file, _ in files], [label for _, label in files], judge)
        for part, files in folder.parts.items()
    }
    train = judged.get("train")
    learned = ImageFiles(train.files, train.targets, learn) if train is not None else None
    labels = np.array(train.targets if train is not None else [], dtype=np.int64)
    return split_up(f"folder:{root}", learned, judged, labels, folder.classes, how)


def _visible(path: Path) -> list[Path]:
    return sorted(one for one in path.iterdir() if not one.name.startswith("."))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and path.is_file()


def _part_folders(root: Path) -> dict[str, Path]:
    """The folders of parts. One named so that holds images itself is a class: trains, say."""
    found: dict[str, Path] = {}
    for path in _visible(root):
        part = next((key for key, names in PART_NAMES.items() if path.name.lower() in names), None)
        if part is None or not path.is_dir() or not any(one.is_dir() for one in _visible(path)):
            continue
        if part in found:
            raise DataError(f"--data folder:{root}: {found[part].name}/ and {path.name}/ are both {part}; keep one")
        found[part] = path
    return {part: found[part] for part in PART_NAMES if part in found}


def _class_folders(path: Path) -> dict[str, list[Path]]:
    """Images by the folder they are in, at any depth below it; folders without images are left out."""
    found = {one.name: sorted(filter(_is_image, one.rglob("*"))) for one in _visible(path) if one.is_dir()}
    return {name: files for name, files in found.items() if files}


def _by_name(path: Path) -> dict[str, list[Path]]:
    """Images side by side by what stands before the first ``_`` of their names; nothing where one has none."""
    found: dict[str, list[Path]] = {}
    for file in filter(_is_image, _visible(path)):
        name, underscore, _ = file.stem.partition("_")
        if not (name and underscore):
            return {}
        found.setdefault(name, []).append(file)
    return found


def _what_is_missing(root: Path) -> str:
    if any(map(_is_image, _visible(root))):
        return (
            "images without classes: put each class's into a folder of its own (CLASS/*.jpg), or name them "
            "CLASS_anything.jpg"
        )
    return f"no images in it (looked for {', '.join(EXTENSIONS)} in folders, one a class)"
