"""The table of street scenes: every method trains alike and ends under its target; what is done is not done again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import segmentation
from tests.helpers.scenes import scenes


@pytest.mark.slow
def test_every_method_gives_a_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = scenes(tmp_path / "camvid", {"train": 16, "test": 2}), tmp_path / "rows.jsonl"
    line = f"segmentation --data {data} --networks lraspp_mobilenet_v3_large --epochs 2 --out {out}"
    monkeypatch.setattr(sys, "argv", line.split())
    monkeypatch.setattr(segmentation, "TARGETS", (0.5,))
    segmentation.main()
    rows = {row["method"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert rows.keys() == {"dense", *segmentation.COMPARED}
    for method, row in rows.items():
        assert 0 <= row["miou"] <= 1
        assert method == "dense" or 0.4 <= row["macs_ratio"] <= 0.5
    before = out.read_text()
    segmentation.main()
    assert out.read_text() == before
