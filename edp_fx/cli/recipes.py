"""``edp-fx recipes``."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("recipes")(recipes)


def recipes() -> None:
    """List the runs that come with the program; edp-fx compress --recipe NAME --out DIR makes one.

    Options given beside a recipe go before what it says.
    """
    from rich.console import Console
    from rich.table import Table

    from edp_fx.job import shipped

    table = Table("recipe", "what for", "give beside it", box=None, pad_edge=False)
    for recipe in shipped():
        table.add_row(recipe.name, recipe.use, recipe.needs or "nothing")
    Console().print(table, highlight=False)
