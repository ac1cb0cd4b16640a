"""``python -m docs.architecture``: draws the rooms of edp_fx into architecture.md from what imports what."""

from __future__ import annotations

import ast
from pathlib import Path

import grimp
import networkx as nx

import edp_fx

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- made by python -m docs.architecture -->", "<!-- end of what is made -->"
PACKAGE = "edp_fx"
FOUNDATIONS = "foundations"


def imports() -> grimp.ImportGraph:
    """Which module of edp_fx imports which, in functions too; what only a type checker imports does not count.

    ``edp_fx`` itself imports the homes of its public names when they are first used: that counts.
    """
    graph = grimp.build_graph(PACKAGE, exclude_type_checking_imports=True, cache_dir=None)
    for home in edp_fx.HOMES.values():
        graph.add_import(importer=PACKAGE, imported=home)
    return graph


def rooms(graph: grimp.ImportGraph) -> nx.DiGraph:
    """Packages and modules directly below edp_fx; an edge from each to those that it imports from."""
    children = sorted(graph.find_children(PACKAGE) - {f"{PACKAGE}.__main__"})
    found = nx.DiGraph()
    found.add_nodes_from(child.removeprefix(f"{PACKAGE}.") for child in children)
    for importer in children:
        for imported in children:
            if importer != imported and graph.direct_import_exists(
                importer=importer, imported=imported, as_packages=True
            ):
                found.add_edge(importer.removeprefix(f"{PACKAGE}."), imported.removeprefix(f"{PACKAGE}."))
    return found


def foundations(found: nx.DiGraph) -> set[str]:
    """The modules, not packages, that need no package: what every room stands on."""
    return {
        room
        for room in found
        if not is_package(room) and not any(is_package(one) for one in nx.descendants(found, room))
    }


def is_package(room: str) -> bool:
    """Whether a room is a folder."""
    return (ROOT / PACKAGE / room).is_dir()


def picture(found: nx.DiGraph) -> str:
    """The rooms in Mermaid, foundations as one; an import that follows from others is left out."""
    base = foundations(found)
    drawn = nx.relabel_nodes(found, dict.fromkeys(base, FOUNDATIONS))
    drawn.remove_edges_from(list(nx.selfloop_edges(drawn)))
    drawn = nx.transitive_reduction(drawn)
    lines = ["flowchart TD"]
    for room in sorted(drawn):
        shape = f'["{room}/"]' if is_package(room) else f'("{room}.py")'
        lines.append(f"  {room}{shape}" if room != FOUNDATIONS else f'  {room}[("{", ".join(sorted(base))}")]')
    lines += [f"  {importer} --> {imported}" for importer, imported in sorted(drawn.edges)]
    return "\n".join(["```mermaid", *lines, "```"])


def purpose(room: str) -> str:
    """The first sentence of a room's docstring."""
    file = ROOT / PACKAGE / room / "__init__.py" if is_package(room) else ROOT / PACKAGE / f"{room}.py"
    text = ast.get_docstring(ast.parse(file.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("``", "`")


def table(found: nx.DiGraph) -> str:
    """Every room with its purpose and the rooms that it imports, those nobody imports first."""
    order = list(nx.lexicographical_topological_sort(found))
    rows = ["| room | what it is | imports |", "| --- | --- | --- |"]
    for room in order:
        name = f"`{room}/`" if is_package(room) else f"`{room}.py`"
        rows.append(f"| {name} | {purpose(room)} | {', '.join(sorted(found.successors(room)))} |")
    return "\n".join(rows)


def page() -> str:
    """architecture.md with its picture and table made anew; what is written by hand stays."""
    found = rooms(imports())
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{picture(found)}\n\n{table(found)}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page())
