"""The graph passes, one a file. Imported as ``edp_fx.passes.*`` and in no other way."""

from __future__ import annotations

if __name__ == "passes":
    raise ImportError("import edp_fx.passes, not passes: the passes have one name")
