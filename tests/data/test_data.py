"""Data sets: fixed splits, order and augmentation by (seed, epoch) alone, errors that say what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edp_fx.data import ArrayDataset, load_data, stratified_split
from edp_fx.errors import DataError


def test_digits_split_is_fixed_disjoint_and_stratified() -> None:
    data = load_data("digits", batch_size=32)
    sizes = [len(loader.dataset) for loader in (data.train, data.val, data.test)]
    assert sum(sizes) == 1797
    assert sizes[2] == pytest.approx(0.2 * 1797, abs=10)
    labels = np.repeat(np.arange(10), 30)
    parts = stratified_split(labels, (0.1, 0.2))
    assert sorted(np.concatenate(parts).tolist()) == list(range(300))
    assert all(np.bincount(labels[part]).tolist() == [size] * 10 for part, size in zip(parts, (21, 3, 6)))
    again = load_data("digits", batch_size=32, seed=9)
    assert torch.equal(data.test.dataset.labels, again.test.dataset.labels)


def test_batches_follow_seed_and_epoch_alone() -> None:
    def batches(seed: int, epoch: int) -> list[Any]:
        data = load_data("digits", batch_size=50, seed=seed)
        data.train.sampler.set_epoch(epoch)
        return [(x.sum(), y) for x, y in data.train]

    first, again, other_epoch, other_seed = batches(1, 2), batches(1, 2), batches(1, 3), batches(2, 2)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, again))
    assert not all(torch.equal(a[1], b[1]) for a, b in zip(first, other_epoch))
    assert not all(torch.equal(a[1], b[1]) for a, b in zip(first, other_seed))


def test_images_have_the_stated_shape_and_scale() -> None:
    data = load_data("digits", batch_size=64, img_size=40)
    images, labels = next(iter(data.train))
    assert images.shape == (64, 3, 40, 40)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert abs(float(images.mean())) < 0.2
    assert 0.7 < float(images.std()) < 1.3


def test_augmentation_of_an_image_does_not_depend_on_its_batch() -> None:
    images = torch.rand(8, 1, 6, 6)
    data = ArrayDataset(images, torch.arange(8), mean=(0.5,), std=(0.5,), shift=2, flip=True, seed=3)
    data.set_epoch(4)
    together, _ = data.__getitems__([5, 2, 7])
    alone, _ = data.__getitems__([2])
    assert torch.equal(together[1], alone[0])
    plain = ArrayDataset(images, torch.arange(8), mean=(0.5,), std=(0.5,))
    assert torch.allclose(plain[3][0][0], (images[3, 0] - 0.5) / 0.5)


def test_fashion_mnist_is_read_from_a_data_directory(fashion_mnist: Path) -> None:
    data = load_data("fashion-mnist", batch_size=20)
    assert [len(loader.dataset) for loader in (data.train, data.val, data.test)] == [270, 30, 50]
    assert next(iter(data.test))[0].shape[1:] == (3, 32, 32)
    assert str(fashion_mnist) in data.splits
    (fashion_mnist / "t10k-labels-idx1-ubyte.gz").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="damaged"):
        load_data("fashion-mnist")


def test_fashion_mnist_that_is_nowhere_says_where_it_may_lie() -> None:
    with pytest.raises(DataError, match=r"datasets/fashion-mnist.*the download failed.*dataset-fashion-mnist"):
        load_data("fashion-mnist")


@pytest.fixture
def picture_folder(tmp_path: Path) -> Path:
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(20):
            Image.fromarray(rng.integers(0, 255, (20, 24), dtype=np.uint8)).save(tmp_path / name / f"{number}.png")
    return tmp_path


def test_folder_is_split_when_it_has_no_parts(picture_folder: Path) -> None:
    data = load_data(f"folder:{picture_folder}", batch_size=4, img_size=16)
    assert data.num_classes == 2
    assert [len(loader.dataset) for loader in (data.train, data.val, data.test)] == [28, 4, 8]
    assert next(iter(data.train))[0].shape == (4, 3, 16, 16)


def test_folder_with_parts_is_taken_as_it_is(picture_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "parts"
    for part in ("train", "val", "test"):
        for name in ("cat", "dog"):
            (root / part).mkdir(parents=True, exist_ok=True)
            (root / part / name).symlink_to(picture_folder / name)
    data = load_data(f"folder:{root}", batch_size=4, img_size=16)
    assert [len(loader.dataset) for loader in (data.train, data.val, data.test)] == [40, 40, 40]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "did you mean digits"),
        ("folder:", "unknown data set"),
        ("folder:/nowhere/at/all", "no such directory"),
        ("torchvision:CIFAR11:/tmp", "did you mean CIFAR1"),
        ("torchvision:CIFAR10:/nowhere", "is the data there"),
    ],
)
def test_bad_specifications_get_one_clear_line(spec: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_data(spec)
    assert "\n" not in str(caught.value)
