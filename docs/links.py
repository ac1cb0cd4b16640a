"""``python -m docs.links SITE``: every link and picture of a built site leads to a file of it, and to a place in that.

Links to other sites are not followed. Ends with status 1 where one leads nowhere.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from urllib.parse import unquote


def broken(site: Path) -> list[str]:
    """Links that lead nowhere, each with the page it is on."""
    pages = {path.resolve(): path.read_text() for path in site.rglob("*.html") if path.name != "404.html"}
    places = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in pages.items()}
    found = []
    for path, text in pages.items():
        for link in re.findall(r'\b(?:href|src)="([^"]+)"', text):
            if re.match(r"[a-z]+:|//", link):
                continue
            name, _, place = unquote(link).partition("#")
            target = (path.parent / name).resolve() if name else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or (place and target in places and place not in places[target]):
                found.append(f"{path.relative_to(site.resolve())}: {link}")
    return found


if __name__ == "__main__":
    wrong = broken(Path(sys.argv[1]))
    print("\n".join(wrong) or "every link leads somewhere")
    sys.exit(bool(wrong))
