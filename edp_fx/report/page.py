"""Self-contained HTML: a template, its styles, scripts and data in one file that needs no network."""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

# A page may run its own scripts and styles and draw its own images, and talk to nobody.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"


def asset(name: str) -> str:
    """The text of a file in ``assets/``."""
    return resources.files("edp_fx.report").joinpath("assets", name).read_text(encoding="utf-8")


def packed(text: str) -> str:
    """Base64 of gzip, the same bytes every time."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


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
    aside: Mapping[str, str] | None = None,
) -> str:
    """A whole HTML document.

    Args:
        title: plain text.
        body: HTML.
        styles, scripts: names of assets, in order.
        data: what the scripts find, as JSON, in the element ``data``.
        aside: element id -> text embedded packed, which the scripts unpack when they need it.
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
        *(f'<script type="text/plain" id="{key}">{packed(text)}</script>' for key, text in (aside or {}).items()),
        *(f"<script>\n{asset(name)}</script>" for name in scripts),
        "</body></html>\n",
    ]
    return "\n".join(parts)
