"""The runs that come with the program: YAML files, a use each, in ``edp_fx/recipes/``."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from edp_fx.errors import EdpError
from edp_fx.settings import near

_NEEDS = "needs "


@dataclass(frozen=True)
class Shipped:
    """A recipe of the program.

    Attributes:
        name: what ``--recipe`` takes.
        use: what it is for, its first line.
        needs: what has to be given beside it; empty for nothing.
        path: of the file.
    """

    name: str
    use: str
    needs: str
    path: Path


def shipped() -> list[Shipped]:
    """All recipes of the program, by name."""
    folder = Path(str(resources.files("edp_fx") / "recipes"))
    return [_read(path) for path in sorted(folder.glob("*.yaml"))]


def find_recipe(given: Path) -> Path:
    """The file that ``--recipe`` means: one that is there, or a recipe of the program by its name.

    Raises:
        EdpError: neither; offers the recipes of near names.
    """
    if given.exists() or given.suffix or len(given.parts) > 1:
        return given
    known = {recipe.name: recipe.path for recipe in shipped()}
    if str(given) not in known:
        hint = near(str(given), known) or f"; take one of {', '.join(known)}"
        raise EdpError(f"--recipe {given}: no such file, nor a recipe of the program{hint}")
    return known[str(given)]


def _read(path: Path) -> Shipped:
    head = [line.removeprefix("#").strip() for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#"]
    use = " ".join(line for line in head if not line.startswith(_NEEDS))
    needs = " ".join(line.removeprefix(_NEEDS) for line in head if line.startswith(_NEEDS))
    return Shipped(path.stem, use, needs, path)
