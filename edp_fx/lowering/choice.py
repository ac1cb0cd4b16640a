"""Which target a compressed network is lowered to when nobody says."""

from __future__ import annotations

import importlib.util

import torch

from edp_fx.errors import LoweringError
from edp_fx.lowering.api import TARGETS, check_request


def choose_target(target: str | None, precision: str) -> str:
    """The lowering target, known to be usable here and in this precision.

    Raises:
        LoweringError: the target is unknown, its package is missing, or it has no such precision.
    """
    packages = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
    if target is None:
        order = ("tensorrt", "tensorrt-rtx") if torch.cuda.is_available() else ("tensorrt-rtx",)
        installed = [name for name in order if importlib.util.find_spec(packages[name]) is not None]
        target = (*installed, order[-1])[0]
    if target not in TARGETS:
        raise LoweringError(f"--target {target}: unknown; take one of {', '.join(TARGETS)}")
    if target in packages and importlib.util.find_spec(packages[target]) is None:
        raise LoweringError(
            f"--target {target}: not installed; pip install 'edp_fx[{target}]', or take --target onnxruntime"
        )
    check_request(target, precision)
    return target
