"""The table from trained weights: every method goes on from one dense network; what is done is not done again."""

from __future__ import annotations

import io
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from benchmarks import trained


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


@pytest.mark.slow
def test_every_method_gives_a_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = photographs(tmp_path / "data", 256), tmp_path / "rows.jsonl"
    methods = [name if number % 2 else name + trained.TAUGHT for number, name in enumerate(trained.COMPARED)]
    line = f"trained --data {data} --networks resnet20 --seeds 0 --dense-epochs 1 --epochs 2 --out {out}"
    line += f" --methods {','.join(methods)}"
    monkeypatch.setattr(sys, "argv", line.split())
    monkeypatch.setattr(trained, "TARGETS", (0.5,))
    trained.main()
    rows = {row["method"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert rows.keys() == {"start", "continued", "continued+teacher", *methods}
    for row in rows.values():
        assert 0 <= row["accuracy"] <= 1
        assert row["target"] == 1 or 0.35 <= row["macs_ratio"] <= 0.5
    before = out.read_text()
    trained.main()
    assert out.read_text() == before
