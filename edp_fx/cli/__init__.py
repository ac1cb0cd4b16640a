"""The ``edp-fx`` command. One file a subcommand; each defines ``register(app)``."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import typer

from edp_fx.errors import EdpError

COMMANDS = ("compress", "inspect", "lower", "evaluate", "bench", "report", "data", "coverage")

app = typer.Typer(
    name="edp-fx",
    help="Make any PyTorch vision model small and fast in one training run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in COMMANDS:
    importlib.import_module(f"edp_fx.cli.{_command}").register(app)


def main(argv: list[str] | None = None) -> Any:
    """Entry point: an :class:`EdpError` becomes one line on stderr and exit status 2, Ctrl-C exit status 130."""
    try:
        return app(args=argv)
    except EdpError as error:
        print(f"edp-fx: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("edp-fx: interrupted", file=sys.stderr)
        sys.exit(130)
