"""Python values in JSON: numbers, strings, tuples, slices, dtypes, references to nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from edp_fx.errors import CheckpointError

_TAGS = ("node", "tuple", "dict", "slice", "dtype", "device", "memory_format", "layout", "ellipsis", "float")


def encode(value: Any) -> Any:
    """``value`` as JSON. Raises CheckpointError for what has no JSON form."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else {"float": repr(value)}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, (tuple, torch.Size)):
        return {"tuple": [encode(one) for one in value]}
    if isinstance(value, list):
        return [encode(one) for one in value]
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(one)] for key, one in value.items()]}
    if isinstance(value, slice):
        return {"slice": [encode(value.start), encode(value.stop), encode(value.step)]}
    if isinstance(value, (torch.dtype, torch.memory_format, torch.layout)):
        tag = {torch.dtype: "dtype", torch.memory_format: "memory_format", torch.layout: "layout"}[type(value)]
        return {tag: str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": value.type}
    if value is Ellipsis:
        return {"ellipsis": True}
    raise CheckpointError(f"cannot save a value of type {type(value).__name__}")


def decode(value: Any, node: Callable[[str], fx.Node]) -> Any:
    """The value behind :func:`encode`'s JSON; ``node`` looks a node up by name."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [decode(one, node) for one in value]
    if isinstance(value, dict) and len(value) == 1:
        ((tag, content),) = value.items()
        if tag == "node" and isinstance(content, str):
            return node(content)
        if tag == "tuple" and isinstance(content, list):
            return tuple(decode(one, node) for one in content)
        if tag == "dict" and isinstance(content, list):
            return {decode(key, node): decode(one, node) for key, one in content}
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
    raise CheckpointError(f"the recipe has an unreadable value {str(value)[:60]!r}: the file is damaged")
