"""Lowering: ONNX, onnxruntime, TensorRT and TensorRT-RTX from a graph or any module."""

from __future__ import annotations

from edp_fx.lowering.api import TARGETS, LowerResult, lower
from edp_fx.lowering.engine import load_engine
from edp_fx.lowering.onnx_export import Exported, export_onnx
from edp_fx.lowering.verify import Verification, verify

__all__ = [
    "TARGETS",
    "Exported",
    "LowerResult",
    "Verification",
    "export_onnx",
    "load_engine",
    "lower",
    "verify",
]

lower.load_engine = load_engine  # type: ignore[attr-defined]
