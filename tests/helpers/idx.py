"""Fashion-MNIST in small: noise in the four files of its format, where a data set of the user's lies."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edp_fx.data.idx import FILES


def write_idx(path: Path, array: NDArray[Any]) -> None:
    """An array of bytes as a gzipped IDX file."""
    with gzip.open(path, "wb") as file:
        file.write(struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape))
        file.write(array.astype(np.uint8).tobytes())


@pytest.fixture
def fashion_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of 300 images for training and 50 for testing; processes that a test starts find it, too."""
    directory = tmp_path / "share" / "datasets" / "fashion-mnist"
    directory.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for images, labels, count in ((*FILES[:2], 300), (*FILES[2:], 50)):
        write_idx(directory / f"{images}.gz", rng.integers(0, 256, (count, 28, 28)))
        write_idx(directory / f"{labels}.gz", np.arange(count) % 10)
    monkeypatch.setenv("XDG_DATA_DIRS", os.fspath(tmp_path / "share"))
    return directory
