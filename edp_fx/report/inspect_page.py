"""The page of ``edp-fx inspect --html``: the dataflow graph, coloured by channel group."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from edp_fx.report.drawing import drawing
from edp_fx.report.page import asset, page

if TYPE_CHECKING:
    from edp_fx.channels import ChannelGraph


def inspect_page(graph: ChannelGraph, name: str) -> str:
    """One self-contained HTML document that shows ``graph``.

    The layout is made in the page by the Eclipse Layout Kernel (elkjs, layered), off its main thread.

    Args:
        graph: of any model.
        name: what the model is called.
    """
    return page(
        f"{name}: channel groups",
        asset("inspect.html").replace("{{name}}", html.escape(name)),
        styles=("base.css", "inspect.css"),
        scripts=("elk-api.js", "viewport.js", "picture.js", "inspect.js"),
        data={"name": name, **drawing(graph)},
        libraries={"elk-worker": "elk-worker.min.js"},
    )
