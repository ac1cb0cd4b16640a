"""The tensors in whatever a network takes or gives: nested containers, dataclasses, objects of the user's own."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

_ATOMS = (Tensor, fx.Node, nn.Module, str, bytes, int, float, complex, bool, type, type(None))


def leaves(value: Any) -> list[Any]:
    """Everything in ``value`` that holds nothing else, in order; an object in it twice is there twice.

    Looks into mappings, sequences, sets, dataclasses, whatever torch's pytree knows and the attributes of plain
    objects.
    """
    return list(_walk(value, ()))


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors among :func:`leaves`."""
    if isinstance(value, Tensor):
        return [value]
    return [leaf for leaf in _walk(value, ()) if isinstance(leaf, Tensor)]


def sole(value: Any) -> Any:
    """The one tensor in ``value``, such as the logits in an object that could hold more; else ``value`` itself."""
    found = tensors_of(value)
    return found[0] if len(found) == 1 else value


def _walk(value: Any, around: tuple[int, ...]) -> Iterator[Any]:
    inside = None if isinstance(value, _ATOMS) or id(value) in around else _children(value)
    if inside is None:
        yield value
    else:
        for _, child in inside:
            yield from _walk(child, (*around, id(value)))


def _children(value: Any) -> list[tuple[Any, Any]] | None:
    """What ``value`` holds, by key, index or attribute; None where it holds nothing."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value):
        return [(field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value)]
    if type(value) in pytree.SUPPORTED_NODES:
        return list(enumerate(pytree.SUPPORTED_NODES[type(value)].flatten_fn(value)[0]))
    if type(value).__module__.partition(".")[0] in ("torch", "numpy", "builtins"):
        return None
    slots = [name for kind in type(value).__mro__ for name in _slots(kind) if hasattr(value, name)]
    attributes = {**{name: getattr(value, name) for name in slots}, **getattr(value, "__dict__", {})}
    return list(attributes.items()) or None


def _slots(kind: type) -> tuple[str, ...]:
    found = kind.__dict__.get("__slots__", ())
    return tuple(name for name in ((found,) if isinstance(found, str) else found) if not name.startswith("__"))


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """``value`` with every tensor replaced, in containers of the same kind; what holds no tensor is the same object."""
    if isinstance(value, Tensor):
        return function(value)
    inside = None if isinstance(value, _ATOMS) else _children(value)
    if inside is None or not tensors_of(value):
        return value
    made = {key: map_tensors(function, child) for key, child in inside}
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named tuple
        return type(value)(*made.values())
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(made.values())
    if type(value) is dict:
        return made
    if type(value) in pytree.SUPPORTED_NODES:
        node = pytree.SUPPORTED_NODES[type(value)]
        return node.unflatten_fn(list(made.values()), node.flatten_fn(value)[1])
    changed = copy.copy(value)
    if isinstance(value, Mapping):
        for key, child in made.items():
            changed[key] = child
    elif isinstance(value, list):
        changed[:] = made.values()
    else:
        for key, child in made.items():
            object.__setattr__(changed, key, child)  # also of a frozen dataclass
    return changed
