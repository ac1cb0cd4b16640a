"""Python values in JSON: numbers, strings, tuples, slices, dtypes, references to nodes, tensors and functions."""

from __future__ import annotations

import numbers
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from edp_fx.checkpoint.allowed import function, function_name
from edp_fx.errors import CheckpointError

_FUNCTIONS = ("F:", "torch:", "aten:", "math:")


def encode(value: Any, tensor: Callable[[Tensor], str] | None = None) -> Any:
    """``value`` as JSON. ``tensor`` names a tensor; without it there may be none.

    Raises CheckpointError for what has no JSON form.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else {"float": repr(float(value))}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, Tensor) and tensor is not None:
        return {"tensor": tensor(value)}
    if isinstance(value, (tuple, torch.Size)):
        return {"tuple": [encode(one, tensor) for one in value]}
    if isinstance(value, list):
        return [encode(one, tensor) for one in value]
    if isinstance(value, (set, frozenset)):
        return {"set": [encode(one, tensor) for one in sorted(value, key=repr)]}
    if isinstance(value, dict):
        return {"dict": [[encode(key, tensor), encode(one, tensor)] for key, one in value.items()]}
    if isinstance(value, slice):
        return {"slice": [encode(value.start), encode(value.stop), encode(value.step)]}
    if isinstance(value, (torch.dtype, torch.memory_format, torch.layout)):
        tag = {torch.dtype: "dtype", torch.memory_format: "memory_format", torch.layout: "layout"}[type(value)]
        return {tag: str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": value.type}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, (numbers.Integral, numbers.Real)):  # numpy's
        return encode(int(value) if isinstance(value, numbers.Integral) else float(value))
    if isinstance(value, weakref.ref):  # to a weight, as torch's recurrent layers keep them
        return {"weak": encode(value(), tensor)}
    if callable(value) and not isinstance(value, type):
        name = function_name(value)
        if name.startswith(_FUNCTIONS):
            return {"function": name}
    raise CheckpointError(f"a value of type {type(value).__name__} has no form in a file")


def decode(value: Any, node: Callable[[str], fx.Node], tensor: Callable[[str], Tensor] | None = None) -> Any:
    """The value behind :func:`encode`'s JSON; ``node`` and ``tensor`` look one up by name."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [decode(one, node, tensor) for one in value]
    if isinstance(value, dict) and len(value) == 1:
        ((tag, content),) = value.items()
        if tag == "node" and isinstance(content, str):
            return node(content)
        if tag == "tensor" and isinstance(content, str) and tensor is not None:
            return tensor(content)
        if tag in ("tuple", "set") and isinstance(content, list):
            return (tuple if tag == "tuple" else set)(decode(one, node, tensor) for one in content)
        if tag == "dict" and isinstance(content, list):
            return {decode(key, node, tensor): decode(one, node, tensor) for key, one in content}
        if tag == "slice" and isinstance(content, list) and len(content) == 3:
            return slice(*(decode(one, node) for one in content))
        if tag in ("dtype", "memory_format", "layout") and isinstance(content, str):
            found = getattr(torch, content, None)
            if isinstance(found, (torch.dtype, torch.memory_format, torch.layout)):
                return found
        if tag == "device" and content in ("cpu", "cuda", "meta"):
            return torch.device(content)
        if tag == "ellipsis":
            return Ellipsis
        if tag == "float" and content in ("inf", "-inf", "nan"):
            return float(content)
        if tag == "weak":
            target = decode(content, node, tensor)
            if isinstance(target, Tensor):
                return weakref.ref(target)
            if target is None:
                return None
        if tag == "function" and str(content).startswith(_FUNCTIONS):
            return function(content)
    raise CheckpointError(f"the recipe has an unreadable value {str(value)[:60]!r}: the file is damaged")
