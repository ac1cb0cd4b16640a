"""The ``edp-fx`` command. One file a subcommand; each defines ``register(app)``."""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

import typer

from edp_fx.errors import EdpError

COMMANDS = ("compress", "recipes", "inspect", "lower", "evaluate", "bench", "report", "data", "device", "coverage")

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


def main(argv: list[str] | None = None) -> NoReturn:
    """Entry point. What the user can mend becomes one line on stderr and exit status 2, Ctrl-C exit status 130."""
    try:
        code = app(args=argv, prog_name="edp-fx", standalone_mode=False)
    except EdpError as error:
        _end(f"edp-fx: {error}", 2)
    except (KeyboardInterrupt, typer.Abort):
        _end("edp-fx: interrupted", 130)
    except Exception as error:
        # a wrong option; the class is click's or typer's own, by typer's version
        if not hasattr(error, "format_message"):
            raise
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "edp-fx"
        if type(error).__name__ == "NoArgsIsHelpError":
            _end(str(error), 2)
        _end(f"{command}: {error.format_message().rstrip('.')}; {command} --help shows all", 2)
    _end("", code if isinstance(code, int) else 0)


def _end(message: str, code: int) -> NoReturn:
    if message:
        print(message, file=sys.stderr)
    sys.exit(code)
