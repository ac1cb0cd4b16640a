"""The README's code runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(BLOCKS[number], f"README block {number}", "exec"), names)
    said = capsys.readouterr().out
    if number == 0:
        assert float(said) <= 0.4
        assert (tmp_path / "small" / "weights.safetensors").exists()
    if number == 1:
        assert names["compressor"].macs <= 0.4
    if number == 2:
        assert "layer3.0.conv2: 256 prunable channels" in said


def test_readme_is_short_and_names_what_exists() -> None:
    text = README.read_text()
    assert len(text.splitlines()) < 150
    paths = re.findall(r"`((?:edp_fx|passes|examples|benchmarks|docs)/\S*)`", text)
    assert paths
    assert [path for path in paths if not (README.parent / path).exists()] == []
