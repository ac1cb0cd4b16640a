"""Rooms and files import each other in one direction, and what is private to a file stays in it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import grimp
import networkx as nx
import pytest

from docs import architecture

ROOT = Path(__file__).parents[2]
FOLDERS = ("edp_fx", "passes", "benchmarks", "examples", "tests", "docs")


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    return architecture.imports()


def test_the_graph_has_the_passes_behind_the_link_and_imports_in_functions(imports: grimp.ImportGraph) -> None:
    assert imports.direct_import_exists(importer="edp_fx.passes.merge", imported="edp_fx.pairs")
    assert imports.direct_import_exists(importer="edp_fx.cli", imported="edp_fx.job", as_packages=True)


def test_no_module_imports_itself_by_way_of_others(imports: grimp.ImportGraph) -> None:
    graph = nx.DiGraph(
        (one, other) for one in imports.modules for other in imports.find_modules_directly_imported_by(one)
    )
    assert [sorted(cycle) for cycle in nx.strongly_connected_components(graph) if len(cycle) > 1] == []


def test_no_room_imports_itself_by_way_of_others(imports: grimp.ImportGraph) -> None:
    packages = [module for module in imports.modules if imports.find_children(module)]
    # the imports to take out of each package for its children to import each other in one direction
    found = {package: imports.nominate_cycle_breakers(package) for package in packages}
    assert {package: wrong for package, wrong in found.items() if wrong} == {}


def test_the_picture_is_of_these_imports() -> None:
    assert architecture.PAGE.read_text() == architecture.page(), "python -m docs.architecture makes it anew"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_uses(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, name) of each private name of another file of ours that is imported, or read from an imported module."""
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FOLDERS:
            yield from ((node.lineno, name.name) for name in node.names if is_private(name.name))
            modules |= {name.asname or name.name for name in node.names if name.name.islower()}
        elif isinstance(node, ast.Import):
            modules |= {name.asname for name in node.names if name.asname and name.name.split(".")[0] in FOLDERS}
    reads = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    for node in reads:
        if is_private(node.attr) and ast.unparse(node.value) in modules:
            yield node.lineno, f"{ast.unparse(node)}"


def test_private_names_are_found() -> None:
    code = "from edp_fx.passes.a import b, _c\nfrom edp_fx import d as e\nimport edp_fx.f as g\nb._h, e._i, g._j, g.k"
    assert [name for _, name in private_uses(ast.parse(code))] == ["_c", "b._h", "e._i", "g._j"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_private_name_is_used_across_files(folder: str) -> None:
    files = [file for file in (ROOT / folder).rglob("*.py") if "__pycache__" not in file.parts]
    assert files
    wrong = [
        f"{file.relative_to(ROOT)}:{line}: {name}"
        for file in files
        for line, name in private_uses(ast.parse(file.read_text()))
    ]
    assert wrong == []
