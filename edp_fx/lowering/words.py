"""Other libraries' messages in one line of ours."""

from __future__ import annotations

from edp_fx.errors import EdpError


def one_line(error: BaseException, limit: int = 400) -> str:
    """The message of ``error`` without line breaks; its type before it where it is not our own."""
    text = " ".join(str(error).split())[:limit]
    return text if isinstance(error, EdpError) else f"{type(error).__name__}: {text or 'no message'}"
