"""Lowering: ONNX, onnxruntime, TensorRT and TensorRT-RTX from a graph or any module.

The names below are imported when first used: the command reads the targets' names without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edp_fx.lowering.api import LowerResult, lower
    from edp_fx.lowering.engine import load_engine
    from edp_fx.lowering.onnx_export import Exported, export_onnx
    from edp_fx.lowering.targets import TARGETS, Target, register_target

_HOMES = {
    "Exported": "onnx_export",
    "LowerResult": "api",
    "TARGETS": "targets",
    "Target": "targets",
    "export_onnx": "onnx_export",
    "load_engine": "engine",
    "lower": "api",
    "register_target": "targets",
}

__all__ = [
    "TARGETS",
    "Exported",
    "LowerResult",
    "Target",
    "export_onnx",
    "load_engine",
    "lower",
    "register_target",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edp_fx.lowering' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"edp_fx.lowering.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
