"""Which target a compressed network is lowered to when nobody says."""

from __future__ import annotations

import importlib.util

import torch

from edp_fx.errors import LoweringError
from edp_fx.lowering.api import TARGETS


def choose_target(target: str | None) -> str:
    """The lowering target, known to be usable here.

    Raises:
        LoweringError: the target is unknown or its package is missing.
    """
    packages = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
    if target is None:
        order = ("tensorrt", "tensorrt-rtx") if torch.cuda.is_available() else ("tensorrt-rtx",)
        for name in order:
            if importlib.util.find_spec(packages[name]) is not None:
                return name
        target = order[-1]
    if target not in TARGETS:
        raise LoweringError(f"--target {target}: unknown; take one of {', '.join(TARGETS)}")
    if target in packages and importlib.util.find_spec(packages[target]) is None:
        raise LoweringError(
            f"--target {target}: not installed; pip install 'edp_fx[{target}]', or take --target onnxruntime"
        )
    return target
