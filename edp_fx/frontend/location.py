"""Where in the user's code an error was raised."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch

from edp_fx.errors import one_line, typed_line

_HERE = Path(__file__).resolve().parents[1]
_OURS = tuple(f"{folder}/" for folder in (Path(torch.__file__).resolve().parent, _HERE, (_HERE / "passes").resolve()))


def location(error: BaseException) -> str:
    """``" at model.py:42, in Block.forward"``: the innermost line that is neither torch's nor this library's."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        code = frame.f_code
        if not code.co_filename.startswith(("<", *_OURS)):
            name = getattr(code, "co_qualname", code.co_name).rpartition("<locals>.")[2]
            return f" at {Path(code.co_filename).name}:{line}, in {name}"
    return ""


def described(error: BaseException, plain: type[BaseException]) -> str:
    """The first line of an error and its place; the type is told unless it is ``plain``, whose message says all."""
    return (one_line(error) if isinstance(error, plain) else typed_line(error)) + location(error)
