"""The lowering targets: a file each, and a line each below. In order of preference where nobody names one."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from edp_fx.errors import LoweringError
from edp_fx.lowering.target import Build, BuildError, BuildOptions, Engine, Progress, Target
from edp_fx.lowering.targets.onnx import Onnx
from edp_fx.lowering.targets.onnxruntime import OnnxRuntime
from edp_fx.lowering.targets.tensorrt import TensorRT
from edp_fx.lowering.targets.tensorrt_rtx import TensorRTRTX
from edp_fx.registration import Registration

_targets: dict[str, Target] = {one.name: one for one in (TensorRT(), TensorRTRTX(), OnnxRuntime(), Onnx())}
TARGETS: Mapping[str, Target] = MappingProxyType(_targets)
"""All targets by name, those of :func:`register_target` last."""


def register_target(target: Target) -> Registration:
    """Make a target of one's own known to ``lower``, the commands and ``load_engine``.

    Returns:
        A handle: ``remove()`` takes the target back, as the end of ``with register_target(...):`` does.

    Raises:
        LoweringError: another target has its name.
    """
    if target.name in _targets:
        raise LoweringError(f"target {target.name!r} is there already: give yours another name")
    _targets[target.name] = target
    return Registration(lambda: _targets.pop(target.name, None))


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
