"""``edp-fx inspect``."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edp_fx.cli.options import ImgSize, ModelArgument

if TYPE_CHECKING:
    from edp_fx.channels import ChannelGraph


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("inspect", epilog="Example: edp-fx inspect resnet18 --html resnet18.html")(inspect)


def inspect(
    model: ModelArgument,
    img_size: ImgSize = None,
    heads: Annotated[
        str, typer.Option(help="Attention heads lose dims, go as a whole, or both: dims | whole | both")
    ] = "dims",
    pairs: Annotated[
        bool, typer.Option("--pairs", help="As trained: with a basis and a coefficient in place of each layer.")
    ] = False,
    explain: Annotated[
        str | None, typer.Option(metavar="LAYER", help="Only say why this layer can or cannot be pruned.")
    ] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write everything as JSON.")] = None,
    dot: Annotated[Path | None, typer.Option(help="Write a Graphviz file.")] = None,
    graphml: Annotated[Path | None, typer.Option(help="Write a GraphML file.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Write a picture of the layers, coloured by group.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page to look at: the graph, its groups, a search.")] = None,
) -> None:
    """Show which channels of a model go together, and which cannot be removed and why."""
    from edp_fx.files import check_writable
    from edp_fx.frontend import trace
    from edp_fx.models import load_model
    from edp_fx.validation.checked import analyze

    for path in (json_path, dot, graphml, svg, html):
        if path is not None:
            check_writable(path)
    loaded = load_model(model, img_size=img_size)
    gm = trace(loaded.model, loaded.example_inputs)
    if pairs:
        from edp_fx.validation.checked import insert

        gm = insert(gm)
    graph = analyze(gm, loaded.example_inputs, heads=heads)
    if explain is not None:
        print(graph.explain(explain))
    else:
        print(graph.table(width=shutil.get_terminal_size().columns if sys.stdout.isatty() else None))
        print("A weight goes with its inputs as well as with its outputs: the shares add up to more than 100 %.")
        print()
        print(summary_line(graph))
    _write(graph, loaded.name, json_path, dot, graphml, svg, html)


def summary_line(graph: ChannelGraph) -> str:
    """Groups, prunable channels, exact share, and what is frozen and why, in a line."""
    from edp_fx.report.drawing import frozen_reasons

    facts = graph.summary()
    line = (
        f"{facts['groups']} prunable groups; {facts['prunable']:,} of {facts['channels']:,} output channels "
        f"({100 * facts['prunable_share']:.1f}%) can be removed, {100 * facts['exact_share']:.1f}% of them exactly"
    )
    frozen = "; ".join(f"{reason} ({count:,} channels)" for reason, count in frozen_reasons(graph))
    outputs = sum(group.is_output for group in graph.groups)
    line += f"; frozen: {frozen}" if frozen else "; nothing is frozen" + (" but the outputs" if outputs else "")
    if facts["opaque_ops"]:
        line += f"; operations without a rule: {', '.join(facts['opaque_ops'])}"
    return line


def _write(
    graph: ChannelGraph,
    name: str,
    json_path: Path | None,
    dot: Path | None,
    graphml: Path | None,
    svg: Path | None,
    html: Path | None,
) -> None:
    from edp_fx.channels.export import to_dot, write_graphml
    from edp_fx.files import whole
    from edp_fx.report.inspect_page import inspect_page, inspect_svg

    def text(make: Callable[[], str]) -> Callable[[Path], object]:
        return lambda part: part.write_text(make(), encoding="utf-8")

    wanted: list[tuple[Path | None, Callable[[Path], object]]] = [
        (json_path, text(lambda: json.dumps(graph.to_json(), indent=1) + "\n")),
        (dot, text(lambda: to_dot(graph))),
        (graphml, lambda part: write_graphml(graph, part)),
        (svg, text(lambda: inspect_svg(graph, name))),
        (html, text(lambda: inspect_page(graph, name))),
    ]
    for path, write in wanted:
        if path is not None:
            with whole(path) as part:
                write(part)
            print(f"wrote {path}")
