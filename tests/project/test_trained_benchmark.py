"""The table from trained weights: every method goes on from one dense network; what is done is not done again."""

from __future__ import annotations

import io
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from benchmarks import trained
from edp_fx.data import ArrayDataset


def photographs(folder: Path, count: int) -> Path:
    """Files of noise in ten classes, as the benchmark reads them."""
    folder.mkdir()
    for number, part in enumerate(("train", "test")):
        dice, files = np.random.default_rng(number), []
        for _ in range(count):
            file = io.BytesIO()
            Image.fromarray(dice.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "jpeg")
            files.append(file.getvalue())
        lens, labels = np.array([len(file) for file in files]), np.arange(count) % 10
        data = np.frombuffer(b"".join(files), dtype=np.uint8)
        np.savez(folder / f"{part}.npz", data=data, lens=lens, labels=labels)
    return folder


def test_the_images_of_torchvision_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda _: True)
    folder, dice = tmp_path / CIFAR10.base_folder, np.random.default_rng(0)
    folder.mkdir()
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    pixels = {name: dice.integers(0, 256, (2, 3, 32, 32), dtype=np.uint8) for name in names}
    for name in names:
        stored = {"data": pixels[name].reshape(2, -1), "labels": [3, 7]}
        (folder / name).write_bytes(pickle.dumps(stored))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": None})
    found = trained.Photographs.load(tmp_path, trained.Setting(1, 1, None))
    assert (len(found.train), len(found.test)) == (10, 2)
    mean, std = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in (trained.MEAN, trained.STD))
    read = (255 * (found.test.images * std + mean)).round().to(torch.uint8)
    assert sorted(read.flatten(1).tolist()) == sorted(pixels["test_batch"].reshape(2, -1).tolist())
    assert sorted(found.test.labels.tolist()) == [3, 7]


def rows_of(line: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Of a command, by method."""
    monkeypatch.setattr(sys, "argv", f"trained {line} --out {out} --networks resnet20 --seeds 0 --targets 0.5".split())
    trained.main()
    return {row["method"]: row for row in map(json.loads, out.read_text().splitlines())}


@pytest.mark.slow
def test_every_method_gives_a_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = photographs(tmp_path / "data", 256), tmp_path / "rows.jsonl"
    names = [name for name in trained.COMPARED if name != "scratch"]
    methods = [name if number % 2 else f"{name}+teacher" for number, name in enumerate(names)]
    line = f"--data {data} --dense-epochs 1 --epochs 2 --methods continued,continued+teacher,{','.join(methods)}"
    rows = rows_of(line, out, monkeypatch)
    assert rows.keys() == {"start", "continued", "continued+teacher", *methods}
    for row in rows.values():
        assert 0 <= row["accuracy"] <= 1
        assert row["target"] == 1 or 0.35 <= row["macs_ratio"] <= 0.5
    before = out.read_text()
    rows_of(line, out, monkeypatch)
    assert out.read_text() == before


def test_from_random_weights_there_is_no_start_and_no_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = photographs(tmp_path / "data", 128), tmp_path / "rows.jsonl"
    line = f"--data {data} --dense-epochs 0 --epochs 3"
    rows = rows_of(f"{line} --methods dense,scratch+start=0.3+end=0.7", out, monkeypatch)
    assert {name: row["target"] for name, row in rows.items()} == {"dense": 1.0, "scratch+start=0.3+end=0.7": 0.5}
    assert rows["scratch+start=0.3+end=0.7"]["macs_ratio"] <= 0.5 < rows["dense"]["macs_ratio"]
    assert not list(tmp_path.glob("*.pt"))
    with pytest.raises(SystemExit):
        rows_of(f"{line} --methods scratch+teacher", out, monkeypatch)
    assert "from random weights there is no teacher" in capsys.readouterr().err


def test_random_weights_are_of_the_seed_and_learn_at_the_whole_rate() -> None:
    data = ArrayDataset(torch.rand(256, 3, 32, 32), torch.arange(256) % 10, mean=(0.5,) * 3, std=(0.3,) * 3)

    def made(seed: int) -> trained.TrainedTrial:
        task = trained.Task("resnet20", "scratch", 0.5, seed)
        return trained.TrainedTrial(task, trained.Setting(0, 2, None), trained.Photographs(data, data), None)

    first, again, other = (next(trial.network().parameters()) for trial in (made(0), made(0), made(1)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert made(0).recipe.peak_lr == 0.1
    assert made(0).method.teacher is None
