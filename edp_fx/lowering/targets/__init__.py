"""The lowering targets: a file each, and a line each below. In order of preference where nobody names one."""

from __future__ import annotations

from edp_fx.errors import LoweringError
from edp_fx.lowering.target import Build, BuildError, BuildOptions, Engine, Progress, Target
from edp_fx.lowering.targets.onnx import Onnx
from edp_fx.lowering.targets.onnxruntime import OnnxRuntime
from edp_fx.lowering.targets.tensorrt import TensorRT
from edp_fx.lowering.targets.tensorrt_rtx import TensorRTRTX

TARGETS: dict[str, Target] = {}


def register_target(target: Target) -> None:
    """Make a target known to ``lower``, the commands and ``load_engine``. One of the same name takes its place."""
    TARGETS[target.name] = target


def get_target(name: str) -> Target:
    """The target of this name. Raises LoweringError where there is none."""
    if name not in TARGETS:
        raise LoweringError(f"unknown target {name!r}: one of {', '.join(TARGETS)}")
    return TARGETS[name]


def choose_target(name: str | None) -> Target:
    """The target of this name, or where None the first that suits this machine, its package installed.

    Raises LoweringError where there is none of this name. :meth:`Target.check` says whether it can be used here.
    """
    if name is not None:
        return get_target(name)
    suited = [target for target in TARGETS.values() if target.is_default()]
    return next((target for target in suited if target.installed), suited[-1])


register_target(TensorRT())
register_target(TensorRTRTX())
register_target(OnnxRuntime())
register_target(Onnx())

__all__ = [
    "TARGETS",
    "Build",
    "BuildError",
    "BuildOptions",
    "Engine",
    "Progress",
    "Target",
    "choose_target",
    "get_target",
    "register_target",
]
