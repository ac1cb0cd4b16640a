"""The README is short, its code runs as it stands, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README", "exec"), {})
    assert float(capsys.readouterr().out) <= 0.4
    assert (tmp_path / "small" / "weights.safetensors").exists()


def test_readme_is_short_and_names_what_exists() -> None:
    text = README.read_text()
    assert len(text.splitlines()) < 120
    paths = re.findall(r"`((?:edp_fx|passes|examples|benchmarks|docs)/\S*)`", text)
    assert paths
    assert [path for path in paths if not (README.parent / path).exists()] == []


def test_every_page_is_two_clicks_away() -> None:
    """From the README's table to a page, or from the page of the first click."""
    pages = {path.relative_to(README.parent / "docs") for path in (README.parent / "docs").rglob("*.md")}
    first = {Path(one) for one in re.findall(r"\]\(docs/([\w/-]+\.md)\)", README.read_text())}
    second = set(first)
    for page in first:
        for link in re.findall(r"\]\(([\w/.-]+\.md)(?:#[\w-]+)?\)", (README.parent / "docs" / page).read_text()):
            second.add(page.parent / link)
    from_hooks = {Path("contributing.md"), Path("changelog.md"), Path("security.md")}
    assert sorted(map(str, pages - second - from_hooks)) == []
