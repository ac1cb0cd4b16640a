"""Self-contained HTML: a template, its styles, scripts and data in one file that needs no network."""

from __future__ import annotations

import base64
import gzip
import html
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any

from edp_fx.errors import EdpError

# A page may run its own scripts and styles and draw its own images, and talk to nobody.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' blob:; worker-src blob:; style-src 'unsafe-inline'; img-src data:"
)


def asset(name: str) -> str:
    """The text of a file in ``assets/``."""
    return resources.files("edp_fx.report").joinpath("assets", name).read_text(encoding="utf-8")


def packed(name: str) -> str:
    """An asset as base64 of gzip (the same bytes every time), for libraries of some size."""
    return base64.b64encode(gzip.compress(asset(name).encode(), 9, mtime=0)).decode()


def as_json(value: Any) -> str:
    """JSON that is safe inside a ``script`` element whatever the strings in it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def page(
    title: str,
    body: str,
    *,
    styles: Sequence[str],
    scripts: Sequence[str],
    data: Any,
    libraries: Mapping[str, str] | None = None,
) -> str:
    """A whole HTML document.

    Args:
        title: plain text.
        body: HTML.
        styles, scripts: names of assets, in order.
        data: what the scripts find, as JSON, in the element ``data``.
        libraries: element id -> name of an asset embedded packed, which the scripts unpack when they need it.
    """
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">',
        f"<title>{html.escape(title)}</title>",
        *(f"<style>\n{asset(name)}</style>" for name in styles),
        "</head><body>",
        body,
        f'<script type="application/json" id="data">{as_json(data)}</script>',
        *(f'<script type="text/plain" id="{key}">{packed(name)}</script>' for key, name in (libraries or {}).items()),
        *(f"<script>\n{asset(name)}</script>" for name in scripts),
        "</body></html>\n",
    ]
    return "\n".join(parts)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to, moved there at the end, so that the file is whole or untouched.

    Raises EdpError where it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        raise EdpError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            part.unlink()


def check_writable(path: Path) -> None:
    """Raise EdpError now where :func:`whole` could not write ``path`` after the work is done."""
    if path.is_dir():
        raise EdpError(f"{path}: is a directory; give the name of a file")
    if not path.parent.is_dir():
        raise EdpError(f"{path}: the directory {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise EdpError(f"{path}: the directory {path.parent} cannot be written")
