"""What the site is made of beside the pages of this folder; ``mkdocs.yml`` names it."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
FROM_THE_TOP = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "SECURITY.md": "security.md"}
RESULTS = "benchmarks/results"
SOURCES = (
    "edp_fx",
    "examples",
    "benchmarks",
    "passes",
    "tests",
    "notebooks",
)  # folders that pages name, not in the site
_ROLE = re.compile(r":(?:class|func|meth|data|attr|mod|exc):<code>(~?)([\w.]+)</code>")


def on_files(files: Files, config: Any) -> Files:
    """Pages that lie at the top of the repository, and the raw results of the benchmarks, as files."""
    for name, page in FROM_THE_TOP.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text()))
    for path in sorted((ROOT / RESULTS).iterdir()):
        if path.suffix != ".md":
            files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
        else:
            files.append(File.generated(config, f"results/{path.name}", content=path.read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as they are right in the repository, for the site."""
    source = page.file.src_uri
    top = {page: name for name, page in FROM_THE_TOP.items()}
    folder = "" if source in top else "docs"
    here = posixpath.dirname(source)

    def moved(match: re.Match[str]) -> str:
        text, target, anchor = match.groups()
        if "://" in target or not target:
            return match.group()
        path = posixpath.normpath(posixpath.join(folder, "" if source in top else here, target))
        if path in FROM_THE_TOP:
            path = FROM_THE_TOP[path]
        elif path.startswith(RESULTS):
            path = path.replace(RESULTS, "results", 1)
        elif path.startswith("docs/"):
            path = path.removeprefix("docs/")
        elif path.split("/")[0] in SOURCES or path in ("LICENSE", "README.md", "CITATION.cff"):
            return text  # in the repository only
        return f"[{text}]({posixpath.relpath(path, here or '.')}{anchor})"

    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)#\s]*)((?:#[^)\s]*)?)\)", moved, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """References in docstrings as code: the last part of a name for ``~a.b.c``."""
    return _ROLE.sub(lambda match: f"<code>{match[2].rpartition('.')[2] if match[1] else match[2]}</code>", html)
