"""What the repository holds itself to and ruff does not see."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
LONGEST = 450
FOLDERS = ("edp_fx", "passes", "benchmarks", "examples", "tests", "docs", ".ci")
ENDINGS = ("", ".py", ".md", ".toml", ".yaml", ".css", ".js", ".html")


def texts() -> dict[str, str]:
    """What people write, by path from the top."""
    files = [*ROOT.glob("*"), *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*"))]
    return {
        str(file.relative_to(ROOT)): file.read_text()
        for file in files
        if file.is_file() and file.suffix in ENDINGS and not file.name.startswith(".")
    }


def test_a_file_of_the_library_has_one_purpose_and_few_lines() -> None:
    lengths = {name: text.count("\n") for name, text in texts().items() if name.startswith(("edp_fx/", "passes/"))}
    assert {name: length for name, length in lengths.items() if name.endswith(".py") and length > LONGEST} == {}


def test_no_path_of_somebodys_machine_is_written_down() -> None:
    home = re.compile(r"(?<![\w.~$}])/(?:home|root|Users|work)/\w")
    assert [name for name, text in texts().items() if home.search(text)] == []


def test_links_in_pages_lead_somewhere() -> None:
    wrong = []
    for name, text in texts().items():
        if name.endswith(".md"):
            for target in re.findall(r"\]\(([^)#\s]+)", text):
                if "://" not in target and not (ROOT / name).parent.joinpath(target).exists():
                    wrong.append(f"{name}: {target}")
    assert wrong == []
