"""The page of ``edp-fx inspect --html``: the dataflow graph, coloured by channel group."""

from __future__ import annotations

import html
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from edp_fx.report.drawing import drawing
from edp_fx.report.page import asset, page
from edp_fx.report.picture import Picture, hues, thumbnail

if TYPE_CHECKING:
    from edp_fx.channels import ChannelGraph


def inspect_page(graph: ChannelGraph, name: str) -> str:
    """One self-contained HTML document that shows ``graph``.

    The drawing is in it as SVG, so that it is seen at once, and where no script runs; the other levels of detail and
    arrangements are packed beside it.

    Args:
        graph: of any model.
        name: what the model is called.
    """
    data = drawing(graph)
    members = {group["id"]: group.pop("members") for group in data["groups"]}
    for group in data["groups"]:
        group["axes"] = len(members[group["id"]])
    pictures = {"layers": Picture(data), "all": Picture(data, everything=True)}
    scenes = {
        f"scene-{detail}-{arrangement}": picture.scene(rows=arrangement == "rows")
        for detail, picture in pictures.items()
        for arrangement in ("rows", "line")
    }
    first = scenes.pop("scene-layers-rows")
    body = asset("inspect.html")
    for key, value in {
        "view": f"{first.width + 24:.0f} {first.height + 70:.0f}",
        "width": f"{first.width:.0f}",
        "height": f"{first.height:.0f}",
        "edges": first.edges,
        "nodes": first.nodes,
        "name": html.escape(name),
    }.items():
        body = body.replace("{{" + key + "}}", value)
    return page(
        f"{name}: channel groups",
        body,
        styles=("base.css", "inspect.css"),
        scripts=("viewport.js", "picture.js", "inspect.js"),
        data={"name": name, "hues": hues(data["groups"]), **data},
        aside={**{key: json.dumps(asdict(scene)) for key, scene in scenes.items()}, "members": json.dumps(members)},
    )


def inspect_svg(graph: ChannelGraph, name: str) -> str:
    """An SVG document of the layers of ``graph``, coloured by group."""
    return thumbnail(drawing(graph), name)
