"""From the Python values of a traced call to the arguments of a node."""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edp_fx.frontend.proxies import TensorProxy, TrainingFlag, Untraceable, ValueProxy

if TYPE_CHECKING:
    from edp_fx.frontend.tracer import ModuleTracer

_PLAIN = (
    str, int, float, complex, bool, type(None), type(...), enum.Enum, torch.dtype, torch.device, torch.layout,
    torch.memory_format, torch._ops.OpOverload,
)  # fmt: skip


def lower(value: Any, tracer: ModuleTracer) -> Any:
    """``value`` with nodes in the place of proxies and tensors; a structure that is not Python's own is made by a node.

    Raises:
        Untraceable: for what a graph cannot hold: a function, a module, an object of some other kind.
    """
    kind = type(value)
    if kind is ValueProxy or kind is TensorProxy:
        return value.node
    if kind is tuple or kind is torch.Size:
        return tuple(lower(one, tracer) for one in value)
    if kind is list:
        return [lower(one, tracer) for one in value]
    if kind is dict:
        return {_key(key): lower(one, tracer) for key, one in value.items()}
    if kind is slice:
        return slice(lower(value.start, tracer), lower(value.stop, tracer), lower(value.step, tracer))
    if kind is TrainingFlag:
        return bool(value)  # a flag that is not understood is read here
    if isinstance(value, Tensor):
        return tracer.constant(value)
    if kind.__module__ == "numpy":  # prints as no literal
        return lower(value.item(), tracer) if value.ndim == 0 else lower(torch.as_tensor(value), tracer)
    if isinstance(value, _PLAIN) or kind is range:
        return value
    return _made(value, tracer)


def _key(key: Any) -> Any:
    """Plain keys only: a value of the graph cannot be looked up."""
    if type(key) in (ValueProxy, TensorProxy):
        raise Untraceable("a dictionary has a value of the graph as a key")
    return key


def _made(value: Any, tracer: ModuleTracer) -> Any:
    """A node that makes a structure: a named tuple, a dataclass, an ordered dictionary or one with attributes."""
    kind = type(value)
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if dataclasses.is_dataclass(value):
        made = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        kwargs = {name: one for name, one in made.items() if one is not None or not isinstance(value, dict)}
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        args = tuple(value)
    elif isinstance(value, dict):
        args = (dict(value),)
    elif isinstance(value, (tuple, list)):
        args = (list(value),)
    else:
        raise Untraceable(f"a value of type {kind.__module__}.{kind.__qualname__} cannot be part of a graph")
    return lower(tracer.create_proxy("call_function", kind, args, kwargs), tracer)
