"""What a recipe may name. A file is data: it can ask for tensor operations and layers, and for nothing else."""

from __future__ import annotations

import importlib
import math
import operator
import re
import types
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from edp_fx.errors import CheckpointError
from edp_fx.extras import EXTRAS, need

_IDENTIFIER = re.compile(r"(?!__)[A-Za-z0-9_]+")
_LAYER_PACKAGES = (
    "torch.nn.modules.",
    "timm.layers.",
    "timm.models.",
    "torchvision.ops.",
    "torchvision.models.",
    "edp_fx.",
)
_ATTRIBUTES = frozenset(
    {"shape", "dtype", "device", "ndim", "T", "mT", "H", "mH", "real", "imag"}
    # what topk, max, aminmax, svd … give has names of its own
    | {name for one in vars(torch.return_types).values() for name in getattr(one, "__match_args__", ())}
)
_OPERATORS = frozenset(
    "add sub mul truediv floordiv mod pow neg pos abs eq ne lt le gt ge and_ or_ xor invert not_ matmul getitem index "
    "iadd isub imul itruediv ifloordiv ipow iand ior ixor lshift rshift".split()
)
_BUILTINS: dict[str, Callable[..., Any]] = {
    one.__name__: one for one in (getattr, len, int, float, bool, max, min, sum, abs, round, tuple, list, slice)
}
_METHODS = frozenset(
    "size dim numel item to type_as view_as reshape_as expand_as contiguous float half double bfloat16 long int bool "
    "type new_zeros new_ones new_full new_empty unflatten unfold split chunk ndimension is_floating_point".split()
)
_TORCH_EXTRA = frozenset(
    {"_assert", "split", "einsum", "meshgrid", "broadcast_tensors", "sym_int", "sym_max", "sym_min", "norm"}
)
_FAMILIES = {"linalg": torch.linalg, "fft": torch.fft, "special": torch.special}
_TORCH_REFUSED = frozenset({"from_file", "set_", "save", "load"})


def check_identifier(name: Any, what: str) -> str:
    """``name`` when it is a dotted name of plain identifiers; CheckpointError otherwise."""
    if not isinstance(name, str) or not name or not all(_IDENTIFIER.fullmatch(part) for part in name.split(".")):
        raise CheckpointError(
            f"the recipe has an illegal {what} {str(name)[:60]!r}: the file is damaged or not to be trusted"
        )
    return name


def function_name(target: Any) -> str:
    """The name a recipe gives a function by. Raises CheckpointError for one that a recipe may not name."""
    for home, module in _homes().items():
        name = getattr(target, "__name__", "").removeprefix(f"{home}_" if home in _FAMILIES else "")
        if name and getattr(module, name, None) is target:
            candidate = f"{home}:{name}"
            if _is_allowed(home, name):
                return candidate
    if isinstance(target, torch._ops.OpOverload):
        return (
            f"aten:{target.overloadpacket.__name__}.{target._overloadname}"
            if target.namespace == "aten"
            else _no(target)
        )
    return _no(target)


def _no(target: Any) -> str:
    raise CheckpointError(
        f"cannot save a call of {getattr(target, '__module__', '')}.{getattr(target, '__name__', target)}: only "
        "torch's tensor operations can be written down; save with torch.export instead"
    )


def function(name: Any) -> Any:
    """The function a recipe names. Raises CheckpointError for anything but a tensor operation."""
    home, _, leaf = str(name).partition(":")
    if home == "aten":
        packet, _, overload = leaf.partition(".")
        check_identifier(packet, "operation"), check_identifier(overload, "operation")
        if packet not in _TORCH_REFUSED and hasattr(torch.ops.aten, packet):
            found = getattr(getattr(torch.ops.aten, packet), overload, None)
            if found is not None:
                return found
    elif home in _homes() and _is_allowed(home, leaf):
        return getattr(_homes()[home], leaf)
    raise CheckpointError(f"the recipe calls {str(name)[:60]!r}, which is no tensor operation: nothing was executed")


def _homes() -> dict[str, Any]:
    named = types.SimpleNamespace
    return {
        "F": F,
        "torch": torch,
        "operator": operator,
        "math": math,
        "builtins": named(**_BUILTINS),
        "collections": named(OrderedDict=OrderedDict),  # what torchvision's segmenters and backbones give
        **_FAMILIES,
    }


def _is_allowed(home: str, name: str) -> bool:
    if home == "operator":
        return name in _OPERATORS
    if home == "builtins":
        return name in _BUILTINS
    if home == "collections":
        return name == "OrderedDict"
    if home == "math":
        return not name.startswith("_") and callable(getattr(math, name, None))
    if name in _TORCH_REFUSED:
        return False
    if home in _FAMILIES:
        return not name.startswith("_") and hasattr(torch.ops.aten, f"{home}_{name}")
    if home == "torch":
        return name in _TORCH_EXTRA or (
            not name.startswith("_") and hasattr(torch.ops.aten, name) and hasattr(torch, name)
        )
    found = getattr(F, name, None)
    module = getattr(found, "__module__", None)
    return (
        callable(found)
        and not isinstance(found, type)
        and not name.startswith("_")
        and module in ("torch.nn.functional", "torch._C._nn", "torch", None, "torch._jit_internal")
    )


def check_method(name: Any) -> str:
    """``name`` when it is a tensor method without side effects outside tensors."""
    if name == "__setitem__":
        return "__setitem__"
    check_identifier(name, "method")
    known = name in _METHODS or (hasattr(torch.ops.aten, name) and hasattr(torch.Tensor, name))
    if not known or name in _TORCH_REFUSED or name.startswith("_"):
        raise CheckpointError(
            f"the recipe calls the method {name!r}, which is no tensor operation: nothing was executed"
        )
    return str(name)


def check_attribute(name: Any) -> None:
    """Raise unless ``getattr(tensor, name)`` is a harmless property."""
    if name not in _ATTRIBUTES:
        raise CheckpointError(f"the recipe reads the attribute {str(name)[:60]!r}: nothing was executed")


def layer_class(path: Any) -> type[nn.Module]:
    """The layer class a recipe names: an nn.Module of torch, timm, torchvision or this library."""
    check_identifier(path, "layer class")
    module, _, name = path.rpartition(".")
    if path == "torch.nn.Module":
        return nn.Module
    if not f"{module}.".startswith(_LAYER_PACKAGES):
        raise CheckpointError(f"the recipe has a layer of class {path!r}, which is not of torch, timm or torchvision")
    package = module.partition(".")[0]
    if package in EXTRAS["models"]:
        need("models", f"the recipe's layer class {path!r}", package)
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(
            f"the recipe's layer class {path!r} is not in the installed packages: see its versions"
        ) from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise CheckpointError(f"the recipe's layer class {path!r} is no layer: nothing was executed")
    return found


def is_own_class(kind: type[nn.Module]) -> bool:
    """Whether a recipe may not name ``kind``: a class of the user's."""
    return not f"{kind.__module__}.".startswith(_LAYER_PACKAGES)


def class_path(module: nn.Module, name: str) -> str:
    """The name a recipe gives the class of the layer ``name`` by. Raises CheckpointError for a user's own."""
    kind = type(module)
    path = f"{kind.__module__}.{kind.__qualname__}"
    if is_own_class(kind):
        raise CheckpointError(
            f"cannot save the layer {name!r} of your own class {path}: it is not traced through and loading must not "
            "run your code; save with torch.export (.pt2) instead"
        )
    return path
