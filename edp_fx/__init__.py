"""edp_fx: a torch.fx compiler that makes vision networks small in one training run.

The names below are the public API; each is imported when first used, so ``import edp_fx`` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edp_fx.channels import ChannelGraph
    from edp_fx.channels.rules import register_rule
    from edp_fx.checkpoint import load, save
    from edp_fx.compressor import Budget, Compressor, Method
    from edp_fx.cost import Device, measure
    from edp_fx.errors import EdpError
    from edp_fx.frontend import trace
    from edp_fx.latency import Runtime
    from edp_fx.lowering import lower
    from edp_fx.parts import trace_parts
    from edp_fx.pipeline import compress
    from edp_fx.prune_merge import prune_and_merge
    from edp_fx.validation.checked import analyze, insert

__version__ = "0.1.0"

HOMES = {  # of each public name
    "Budget": "edp_fx.compressor",
    "ChannelGraph": "edp_fx.channels",
    "Compressor": "edp_fx.compressor",
    "Device": "edp_fx.cost",
    "EdpError": "edp_fx.errors",
    "Runtime": "edp_fx.latency",
    "Method": "edp_fx.compressor",
    "analyze": "edp_fx.validation.checked",
    "compress": "edp_fx.pipeline",
    "insert": "edp_fx.validation.checked",
    "load": "edp_fx.checkpoint",
    "lower": "edp_fx.lowering",
    "measure": "edp_fx.cost",
    "prune_and_merge": "edp_fx.prune_merge",
    "register_rule": "edp_fx.channels.rules",
    "save": "edp_fx.checkpoint",
    "trace": "edp_fx.frontend",
    "trace_parts": "edp_fx.parts",
}

__all__ = [
    "Budget",
    "ChannelGraph",
    "Compressor",
    "Device",
    "EdpError",
    "Method",
    "Runtime",
    "analyze",
    "compress",
    "insert",
    "load",
    "lower",
    "measure",
    "prune_and_merge",
    "register_rule",
    "save",
    "trace",
    "trace_parts",
]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'edp_fx' has no attribute {name!r}")
    value = getattr(importlib.import_module(HOMES[name]), name)
    globals()[name] = value
    return value
