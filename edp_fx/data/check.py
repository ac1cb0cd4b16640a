"""A look at all files of an image folder before a run: counts, sizes, damaged files, duplicates across parts."""

from __future__ import annotations

import hashlib
import os
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edp_fx.data.folders import Folder, read_folder
from edp_fx.errors import one_line
from edp_fx.extras import need

MOST = 20_000  # files that a run looks through by itself: more would take minutes


@dataclass(frozen=True)
class FolderCheck:
    """What was found in a folder.

    Attributes:
        folder: its files.
        sizes: (width, height) of every readable image, in pixels.
        unreadable: damaged files, with the reason.
        duplicates: the same bytes in two parts, or under two labels.
    """

    folder: Folder
    sizes: tuple[tuple[int, int], ...]
    unreadable: tuple[tuple[Path, str], ...]
    duplicates: tuple[tuple[Path, Path], ...]

    def counts(self) -> dict[str, dict[str, int]]:
        """Images by class and part."""
        result: dict[str, dict[str, int]] = {name: dict.fromkeys(self.folder.parts, 0) for name in self.folder.classes}
        for part, files in self.folder.parts.items():
            for _, label in files:
                result[self.folder.classes[label]][part] += 1
        return result

    def warnings(self) -> list[str]:
        """What a run should not begin with, a line each."""
        lines = []
        if self.unreadable:
            lines.append(f"{_some(file for file, _ in self.unreadable)}: unreadable ({self.unreadable[0][1]})")
        if self.duplicates:
            pair = " and ".join(map(str, self.duplicates[0]))
            lines.append(f"{len(self.duplicates)} images stand in two parts or under two classes: {pair}")
        smallest = min((min(size) for size in self.sizes), default=0)
        if self.sizes and smallest < 8:
            lines.append(f"the smallest image has a side of {smallest} pixels")
        return lines

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "root": str(self.folder.root),
            "counts": self.counts(),
            "sizes": size_range(self.sizes),
            "unreadable": [[str(file), reason] for file, reason in self.unreadable],
            "duplicates": [[str(one), str(other)] for one, other in self.duplicates],
        }


def check_folder(root: Path, progress: Callable[[int, int], None] | None = None) -> FolderCheck:
    """Decode every image once, on all cores.

    Args:
        root: see :func:`~edp_fx.data.folders.read_folder`.
        progress: told how many of how many files are done.

    Raises:
        DataError: as :func:`~edp_fx.data.folders.read_folder`.
    """
    folder = read_folder(root)
    entries = [(file, label, part) for part, files in folder.parts.items() for file, label in files]
    sizes, unreadable = [], []
    seen: dict[bytes, list[tuple[Path, int, str]]] = defaultdict(list)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looked = pool.map(_look, (file for file, _, _ in entries))
        for number, ((file, label, part), (size, digest, reason)) in enumerate(zip(entries, looked), 1):
            if size is not None:
                sizes.append(size)
                seen[digest].append((file, label, part))
            else:
                unreadable.append((file, reason))
            if progress is not None:
                progress(number, len(entries))
    duplicates = []
    for same in seen.values():
        first, *others = same
        duplicates += [(first[0], one[0]) for one in others if one[1:] != first[1:]]
    return FolderCheck(folder, tuple(sizes), tuple(unreadable), tuple(duplicates))


def file_warnings(spec: str) -> list[str]:
    """What a run on ``folder:PATH`` should be told of its files, a line each; nothing for other data sets.

    Raises:
        DataError: as :func:`~edp_fx.data.folders.read_folder`.
    """
    kind, _, path = spec.partition(":")
    if kind != "folder":
        return []
    files = len(read_folder(Path(path)))
    if files > MOST:
        return [f"{files:,} files were not looked through: edp-fx data {path} does"]
    return check_folder(Path(path)).warnings()


def size_range(sizes: Iterable[tuple[int, int]]) -> dict[str, float]:
    """Smallest, middle and largest shorter side, in pixels."""
    sides = sorted(min(size) for size in sizes)
    if not sides:
        return {}
    return {"smallest": sides[0], "median": statistics.median(sides), "largest": sides[-1]}


def _look(file: Path) -> tuple[tuple[int, int] | None, bytes, str]:
    """Size and digest of an image; no size, and the reason, where it is damaged."""
    from io import BytesIO

    need("data", "reading image files", "PIL")
    from PIL import Image

    try:
        content = file.read_bytes()
        with Image.open(BytesIO(content)) as image:
            size = image.size
            image.draft("RGB", (32, 32))  # a JPEG is read to its end, but decoded small
            image.load()
        return size, hashlib.blake2b(content, digest_size=16).digest(), ""
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError and more
        return None, b"", one_line(error)


def _some(files: Iterable[Path]) -> str:
    names = [str(file) for file in files]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
