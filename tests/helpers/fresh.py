"""The machine that tests see: no home, no data, no caches, no network; what they start sees the same."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

NO_NETWORK = Path(__file__).parents[1] / "fresh"
HIDDEN = {
    "HOME": "home",
    "XDG_CACHE_HOME": "home/.cache",
    "XDG_CONFIG_HOME": "home/.config",
    "XDG_DATA_HOME": "home/.local/share",
    "XDG_DATA_DIRS": "share",
}
CACHES = ("HF_HOME", "HF_HUB_CACHE", "TORCH_HOME", "MPLCONFIGDIR", "XDG_STATE_HOME")


def hide_machine(empty: Path) -> None:
    """Point this process, and those it starts, to directories below ``empty``, and cut the network off.

    Call it before torch, timm and others read the environment.
    """
    for name, place in HIDDEN.items():
        (empty / place).mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(empty / place)
    for name in list(os.environ):
        if name in CACHES or name.lower().endswith("_proxy"):
            del os.environ[name]
    os.environ["HF_HUB_OFFLINE"] = "1"
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(NO_NETWORK) not in path:  # else this process was started by one that is cut off, as a worker of xdist is
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(NO_NETWORK), *path]))
        sys.path.insert(0, str(NO_NETWORK))
        sys.modules.pop("sitecustomize", None)
        importlib.import_module("sitecustomize")
