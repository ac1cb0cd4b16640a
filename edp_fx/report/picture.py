"""The graph of a model as SVG: inside the page of ``edp-fx inspect``, and alone as a thumbnail."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edp_fx.report.layout import Edge, Layered, Layout

_MOST_LETTERS = 24
# widths in em of a sans serif's letters, roughly; all others as wide as an "a"
_WIDTHS = {
    **dict.fromkeys("ijl.,:;'|!", 0.35),
    **dict.fromkeys("ftr()[]-/ ", 0.42),
    **dict.fromkeys("mwMW@%", 0.9),
    **dict.fromkeys("ABCDEFGHKLNOPQRSTUVXYZ&", 0.76),
    "…": 1.0,
    "×": 0.6,
}
_ORDINARY = 0.66


@dataclass(frozen=True)
class Scene:
    """SVG elements of a graph, edges before nodes, and the room that they take in pixels."""

    edges: str
    nodes: str
    width: float
    height: float


class Picture:
    """One level of detail of a graph.

    Args:
        data: of :func:`edp_fx.report.drawing.drawing`.
        everything: every operation on a tensor; else layers and joins, with what follows a layer folded into it.
    """

    def __init__(self, data: Mapping[str, Any], everything: bool = False) -> None:
        self._nodes: list[dict[str, Any]] = data["nodes"]
        self._hues: dict[int, float] = hues(data["groups"])
        into = [
            (-1 if node["into"] < 0 and not node["shapes"] else k) if everything else node["into"]
            for k, node in enumerate(self._nodes)
        ]
        edges = {
            Edge(into[source], into[k], source)
            for k, node in enumerate(self._nodes)
            for source in node["in"]
            if into[k] >= 0 and into[source] not in (-1, into[k])
        }
        self._layered = Layered({k: _size(self._nodes[k]) for k in set(into) - {-1}}, edges)

    def scene(self, rows: bool = True) -> Scene:
        """Left to right, in rows or in one line."""
        placed = self._layered.arranged(rows)
        return Scene(self._edges(placed), self._drawn(placed), placed.width, placed.height)

    def _edges(self, placed: Layout) -> str:
        return "".join(
            f'<path class="edge{self._paint(self._only_group(via))} data-via="{via}" d="{path}"/>'
            for (_, via), path in placed.paths.items()
        )

    def _only_group(self, k: int) -> int | None:
        carried = self._nodes[k]["carries"]
        return carried[0][0] if len(carried) == 1 else None

    def _paint(self, group: int | None) -> str:
        """The end of a class attribute, and what follows it: a group's hue, grey for what stays, or plain."""
        if group is None:
            return ' plain"'
        return f' hue" style="--hue:{self._hues[group]:.1f}"' if group in self._hues else ' grey"'

    def _drawn(self, placed: Layout) -> str:
        parts = []
        for k, box in placed.boxes.items():
            node = self._nodes[k]
            main, sub = labels(node)
            layer = node["kind"] == "call_module" and bool(node["roles"])
            carried: Sequence[Sequence[int]] = node["carries"]
            group = carried[0][0] if carried and (len(carried) == 1 or layer) else None
            name = html.escape(node["name"])
            path = f' data-layer="{html.escape(node["layer"])}"' if node["layer"] else ""
            radius = 6 if layer else box.height / 2
            lift = 3 if len(carried) > 1 else 0
            parts.append(
                f'<g class="node {"layer" if layer else "op"}{self._paint(group)} transform="translate({box.x:.1f} '
                f'{box.y:.1f})" data-node="{name}"{path}>'
                f'<rect class="box" width="{box.width:.0f}" height="{box.height:.0f}" rx="{radius:.0f}"/>'
            )
            parts.append(self._pieces(carried, box.width, box.height) if len(carried) > 1 else "")
            text = f'x="{box.width / 2:.1f}" text-anchor="middle"'
            two = " two" if sub else ""
            parts.append(f'<text class="main{two}" {text} y="{(18 if sub else 20) - lift}">{html.escape(main)}</text>')
            if sub:
                parts.append(f'<text class="sub" {text} y="{33 - lift}">{html.escape(sub)}</text>')
            parts.append("</g>")
        return "".join(parts)

    def _pieces(self, carried: Sequence[Sequence[int]], width: float, height: float) -> str:
        """A bar of the groups that a node carries, each as long as it has channels."""
        total = sum(count for _, count in carried)
        x, parts = 12.0, []
        for group, count in carried:
            share = (width - 24) * count / total
            at = f'x="{x:.1f}" y="{height - 7:.0f}" width="{max(share - 0.5, 0.5):.1f}" height="4"'
            parts.append(f'<rect class="piece{self._paint(group)} {at}/>')
            x += share
        return "".join(parts)


def hues(groups: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """A hue in degrees for each prunable group: neighbours are a golden angle apart, so that they differ most."""
    prunable = [group["id"] for group in groups if group["prunable"]]
    return {group: (25 + k * 137.508) % 360 for k, group in enumerate(prunable)}


def labels(node: Mapping[str, Any]) -> tuple[str, str]:
    """What is written on a node, and below: the layer or operation, and its kind and the shape of one result."""
    module = node["kind"] == "call_module"
    shape = ("×".join(map(str, node["shapes"][0][1:])) or "1") if node["shapes"] else ""
    main = short(node["layer"], _MOST_LETTERS) if module or node["kind"] == "get_attr" else node["op"]
    return main, "  ".join(filter(None, [node["op"] if module else "", shape]))


def short(name: str, most: int) -> str:
    """The last parts of a path, so that the most are kept that fit."""
    rest = name
    while len(rest) > most and "." in rest:
        rest = rest.partition(".")[2]
    rest = rest[-most:]
    return rest if rest == name else f"…{rest}"


def _size(node: Mapping[str, Any]) -> tuple[float, float]:
    main, sub = labels(node)
    return max(_width(main, 12.5), _width(sub, 10.5), 34.0) + 20, 42.0 if sub else 30.0


def _width(text: str, size: float) -> float:
    return size * sum(_WIDTHS.get(letter, _ORDINARY) for letter in text)


_STYLE = """
.box{fill:#fff;stroke:#b4b9c0;stroke-width:1.5}.edge{fill:none;stroke:#b4b9c0;stroke-width:1.6}
.hue .box{stroke:hsl(var(--hue) 45% 52%)}.layer.hue .box{fill:hsl(var(--hue) 75% 88%)}
.edge.hue{stroke:hsl(var(--hue) 45% 52%)}.piece.hue{fill:hsl(var(--hue) 45% 52%)}.piece{fill:#b4b9c0}
.layer.grey .box{fill:#f1f2f4}.node.grey .box{stroke-dasharray:4 3}
text{font:600 12.5px system-ui,"Segoe UI","Liberation Sans",sans-serif;fill:#1c1e21}
text.sub{font-weight:400;font-size:10.5px;fill:#5d646d}
"""


def thumbnail(data: Mapping[str, Any], name: str) -> str:
    """An SVG document of a graph's layers and joins, coloured by group: a picture of any model for a page or a mail.

    Args:
        data: of :func:`edp_fx.report.drawing.drawing`.
        name: what the model is called; the picture's title.
    """
    scene = Picture(data).scene()
    margin = 12
    size = f"{-margin} {-margin} {scene.width + 2 * margin:.0f} {scene.height + 2 * margin:.0f}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" role="img"><title>{html.escape(name)}: channel '
        f"groups</title><style>{_STYLE}</style>"
        f'<rect x="{-margin}" y="{-margin}" width="100%" height="100%" fill="#fbfbfa"/>'
        f"{scene.edges}{scene.nodes}</svg>\n"
    )
