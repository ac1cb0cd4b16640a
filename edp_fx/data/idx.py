"""Fashion-MNIST from wherever it lies on this machine, in the IDX format of the MNIST family."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edp_fx.errors import DataError
from edp_fx.extras import need
from edp_fx.files import cache_directory, xdg_directory

Split = tuple[NDArray[np.uint8], NDArray[np.uint8]]

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def fashion_directories() -> list[Path]:
    """Where Fashion-MNIST may lie: here, in the user's cache (torchvision's layout), in the data directories of the XDG
    base directory specification (Debian's package dataset-fashion-mnist puts it into /usr/share/datasets)."""
    shares = [xdg_directory("XDG_DATA_HOME", "~/.local/share")]
    shares += map(Path, (os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share").split(":"))
    return [
        Path("data/FashionMNIST/raw"),
        cache_directory() / "FashionMNIST" / "raw",
        *(share / "datasets" / "fashion-mnist" for share in shares),
    ]


def find_fashion_mnist() -> Path | None:
    """The first usual directory that holds all four files, compressed or not."""
    for path in fashion_directories():
        if all((path / name).is_file() or (path / f"{name}.gz").is_file() for name in FILES):
            return path
    return None


def read_fashion_mnist() -> tuple[Split, Split, Path]:
    """(images [N, 28, 28] uint8, labels [N] uint8) of train and of test, and where they were found.

    Where no usual directory has them, torchvision downloads them to the user's cache.

    Raises:
        DataError: neither found nor downloaded, or a damaged file.
    """
    directory = find_fashion_mnist()
    if directory is None:
        need("data", "downloading Fashion-MNIST", "torchvision")
        from torchvision.datasets import FashionMNIST

        root = cache_directory()
        try:
            FashionMNIST(str(root), download=True)
        except Exception as error:
            places = ", ".join(str(path) for path in fashion_directories())
            raise DataError(
                f"--data fashion-mnist: not in {places}, and the download failed "
                f"({type(error).__name__}); install Debian's package dataset-fashion-mnist or put "
                "the four idx files into one of these directories"
            ) from error
        directory = root / "FashionMNIST" / "raw"
    train_images, train_labels, test_images, test_labels = (read_idx(_either(directory, name)) for name in FILES)
    return (train_images, train_labels), (test_images, test_labels), directory


def read_idx(path: Path) -> NDArray[Any]:
    """An IDX file of unsigned bytes, gzipped or not, as an array of the shape its header states."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            zero, kind, dims = struct.unpack(">HBB", file.read(4))
            shape = struct.unpack(f">{dims}I", file.read(4 * dims))
            values = np.frombuffer(file.read(), dtype=np.uint8)
        if zero != 0 or kind != 8:
            raise ValueError("not an IDX file of bytes")
        return values.reshape(shape).copy()
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise DataError(f"{path}: damaged data file ({error}); fetch it again") from error


def _either(directory: Path, name: str) -> Path:
    plain = directory / name
    return plain if plain.is_file() else directory / f"{name}.gz"
