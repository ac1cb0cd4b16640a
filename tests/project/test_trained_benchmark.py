"""The table from trained weights: every method goes on from one dense network; what is done is not done again."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
