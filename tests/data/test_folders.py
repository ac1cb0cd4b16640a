"""Image folders as people have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edp_fx.cli import main
from edp_fx.data import load_data
from edp_fx.data.check import check_folder
from edp_fx.errors import DataError


def fill(folder: Path, count: int, names: tuple[str, ...] = ("cat", "dog"), seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(folder / name / f"{number}.jpg")
    return folder


def sizes(spec: str) -> dict[str, int]:
    loaded = load_data(spec, batch_size=4, img_size=16, workers=0)
    return {split: len(loader.dataset) for split, loader in loaded.loaders.items()}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"training": 20, "valid": 6, "testing": 8}, {"train": 40, "val": 12, "test": 16, "all": 68}),
        ({"train": 20, "test": 5}, {"train": 36, "val": 4, "test": 10, "all": 50}),
        ({"training": 20, "val": 5}, {"train": 36, "val": 4, "test": 10, "all": 50}),
        ({"train": 20}, {"train": 28, "val": 4, "test": 8, "all": 40}),
        ({"test": 5}, {"test": 10, "all": 10}),
    ],
)
def test_parts_by_their_usual_names_and_any_may_be_missing(
    parts: dict[str, int], expected: dict[str, int], tmp_path: Path
) -> None:
    for name, count in parts.items():
        fill(tmp_path / name, count)
    assert sizes(f"folder:{tmp_path}") == expected


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    fill(tmp_path / "test", 5)
    data = load_data(f"folder:{tmp_path}", img_size=16, workers=0)
    assert data.classes == ("cat", "dog")
    with pytest.raises(DataError, match="no images for train: it has no training images"):
        _ = data.train


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    fill(tmp_path, 10, ("car", "train"))
    assert load_data(f"folder:{tmp_path}", img_size=16, workers=0).classes == ("car", "train")


def test_one_image_a_class_can_be_evaluated_but_not_split(tmp_path: Path) -> None:
    for number, name in enumerate(("n01_tench", "n02_goldfish", "n03_shark")):
        fill(tmp_path / "x", 1, ("y",), seed=number)
        (tmp_path / "x" / "y" / "0.jpg").rename(tmp_path / f"{name}.jpg")
    (tmp_path / "x" / "y").rmdir()
    (tmp_path / "x").rmdir()
    data = load_data(f"folder:{tmp_path}", img_size=16, workers=0)
    assert data.classes == ("n01", "n02", "n03")
    assert [int(label) for _, labels in data.loader("all") for label in labels] == [0, 1, 2]
    with pytest.raises(DataError, match="too few images to split"):
        _ = data.train


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "no images in it"),
        (lambda root: fill(root, 10, ("one",)), "one class only"),
        (lambda root: (fill(root / "train", 10), fill(root / "val", 3, ("cat", "cow"))), "different class folders"),
        (lambda root: (fill(root / "train", 10), fill(root / "training", 3)), "are both train"),
        (lambda root: (fill(root / "c", 1, ("x",)), (root / "c/x/0.jpg").rename(root / "a.jpg")), "without classes"),
    ],
)
def test_wrong_folders_get_one_clear_line(make: object, message: str, tmp_path: Path) -> None:
    make(tmp_path)  # type: ignore[operator]
    with pytest.raises(DataError, match=message) as caught:
        load_data(f"folder:{tmp_path}", img_size=16, workers=0)
    assert "\n" not in str(caught.value)


def test_damaged_files_and_duplicates_are_found_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "train", 6)
    fill(tmp_path / "test", 2, seed=1)
    damaged, again = tmp_path / "train/dog/3.jpg", tmp_path / "test/cat/1.jpg"
    damaged.write_bytes(damaged.read_bytes()[:300])
    again.write_bytes((tmp_path / "train/cat/2.jpg").read_bytes())
    found = check_folder(tmp_path)
    assert [file for file, _ in found.unreadable] == [damaged]
    assert found.duplicates == ((tmp_path / "train/cat/2.jpg", again),)
    assert found.counts() == {"cat": {"train": 6, "test": 2}, "dog": {"train": 6, "test": 2}}
    assert len(found.warnings()) == 2
    with pytest.raises(SystemExit) as stop:
        main(["data", str(tmp_path), "--json", str(tmp_path / "check.json")])
    assert stop.value.code == 2
    assert str(damaged) in capsys.readouterr().out
    data = load_data(f"folder:{tmp_path}", batch_size=4, img_size=16, workers=0)
    with pytest.raises(DataError, match=r"dog/3\.jpg"):
        list(data.loader("all"))
