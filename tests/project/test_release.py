"""One version everywhere, and what a release needs is there. `python -m tests.release` builds and uses it."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

import edp_fx

ROOT = Path(__file__).parents[2]


def test_the_version_is_one() -> None:
    project = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    changes = re.findall(r"^## (\d+\.\d+\.\d+) \(.+\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert project is not None
    assert {project[1], cited["version"], changes[0]} == {edp_fx.__version__}
    assert re.fullmatch(r"\d+\.\d+\.\d+", edp_fx.__version__)


def test_the_citation_has_what_its_format_needs() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert cited["license"] == "Apache-2.0"


def test_the_public_names_are_typed_and_exist() -> None:
    assert sorted(edp_fx.__all__) == sorted(edp_fx.HOMES)
    assert all(hasattr(edp_fx, name) for name in edp_fx.__all__)
    assert (ROOT / "edp_fx" / "py.typed").exists()
