"""Files that are written whole or not at all, and where they are kept."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from edp_fx.errors import EdpError


def xdg_directory(variable: str, default: str) -> Path:
    """A directory of the XDG base directory specification: what the environment says, or the default."""
    return Path(os.environ.get(variable) or default).expanduser()


def cache_directory() -> Path:
    """Where what can be made again is kept: ``$XDG_CACHE_HOME/edp_fx``, or below ``~/.cache``."""
    return xdg_directory("XDG_CACHE_HOME", "~/.cache") / "edp_fx"


@contextmanager
def whole(path: Path, error: type[EdpError] = EdpError) -> Iterator[Path]:
    """A path beside ``path`` to write to, moved there at the end: the file is the old one or the new one.

    Raises ``error`` in one line where it cannot be written; nothing is left beside it.
    """
    with _all_or_none([path], error) as (part,):
        yield part


def write(files: Mapping[Path, bytes], error: type[EdpError] = EdpError) -> None:
    """Write several files, all of them or none. Raises ``error``."""
    with _all_or_none(list(files), error) as parts:
        for part, content in zip(parts, files.values()):
            part.write_bytes(content)


@contextmanager
def _all_or_none(paths: Sequence[Path], error: type[EdpError]) -> Iterator[list[Path]]:
    parts = [path.with_name(f".{path.name}.{os.getpid()}.part") for path in paths]
    current = paths[0]
    try:
        yield parts
        for path, part in zip(paths, parts):
            current = path
            with open(part, "rb") as file:
                os.fsync(file.fileno())  # a full disk shows before the first file is moved to its place
        for path, part in zip(paths, parts):
            current = path
            os.replace(part, path)
    except OSError as reason:
        raise error(f"{current}: cannot be written: {reason.strerror or reason}") from reason
    finally:
        for part in parts:
            with suppress(OSError):
                part.unlink()


def remove_leftovers(path: Path) -> None:
    """Remove what processes killed while they wrote ``path`` left beside it; nobody else may be writing it."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with suppress(OSError):
            part.unlink()


def write_json(value: Any, path: Path) -> None:
    """Write ``value`` as indented JSON. Raises EdpError."""
    write({path: (json.dumps(value, indent=1) + "\n").encode()})


def check_writable(path: Path, error: type[EdpError] = EdpError) -> None:
    """Raise ``error`` before the work is done, not after it, where ``path`` cannot be written."""
    if path.is_dir():
        raise error(f"{path}: is a directory; give the name of a file")
    if not path.parent.is_dir():
        wrong = "is no directory" if path.parent.exists() else "does not exist"
        raise error(f"{path}: the directory {path.parent} {wrong}")
    if not os.access(path.parent, os.W_OK):
        raise error(f"{path}: the directory {path.parent} cannot be written")
