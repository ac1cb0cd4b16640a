"""Attributes of a module's copy: what in them refers to a module refers to that module's copy."""

from __future__ import annotations

import functools
import types
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, str, Tensor, type(None))
_EXACT = frozenset((*_PLAIN, nn.Parameter, torch.dtype, torch.device, torch.Size))
_CONTAINERS = frozenset((list, set, dict, OrderedDict))
_REFERRING = (nn.Module, types.MethodType, types.FunctionType, functools.partial, tuple)


def redirected(value: Any, copies: Mapping[int, nn.Module], seen: dict[int, Any] | None = None) -> Any:
    """``value`` with copies in the place of modules, in containers, bound methods, partial functions and closures too.

    Containers are copied, so that the original's stay as they are.

    Args:
        value: an attribute.
        copies: the copy of each module, by the module's id.
        seen: what is done already, by id.
    """
    kind = type(value)
    if kind in _EXACT or isinstance(value, _PLAIN):
        return value
    if isinstance(value, nn.Module):
        return copies.get(id(value), value)
    if seen is None:
        if kind in _CONTAINERS and not value:  # hooks: most of what a module has
            return kind()
        seen = {}
    if id(value) in seen:
        return seen[id(value)]
    if kind in _CONTAINERS:
        new: Any = kind()
        seen[id(value)] = new
        if kind is list:
            new.extend(redirected(one, copies, seen) for one in value)
        elif kind is set:
            new.update(redirected(one, copies, seen) for one in value)
        else:
            new.update((key, redirected(one, copies, seen)) for key, one in value.items())
        return new
    seen[id(value)] = value
    if kind is tuple and not _EXACT.issuperset(map(type, value)):
        return _unless_same(value, tuple(redirected(one, copies, seen) for one in value))
    if kind is types.MethodType:
        owner = redirected(value.__self__, copies, seen)
        return value if owner is value.__self__ else types.MethodType(value.__func__, owner)
    if kind is functools.partial:
        old = (value.func, *value.args, *value.keywords.values())
        new = _unless_same(old, tuple(redirected(one, copies, seen) for one in old))
        count = 1 + len(value.args)
        return value if new is old else functools.partial(*new[:count], **dict(zip(value.keywords, new[count:])))
    if kind is types.FunctionType and value.__closure__:
        cells = _unless_same(value.__closure__, tuple(_cell(one, copies, seen) for one in value.__closure__))
        return value if cells is value.__closure__ else _with_cells(value, cells)
    return value


def _unless_same(old: tuple[Any, ...], new: tuple[Any, ...]) -> tuple[Any, ...]:
    return old if all(one is other for one, other in zip(old, new)) else new


def _cell(cell: types.CellType, copies: Mapping[int, nn.Module], seen: dict[int, Any]) -> types.CellType:
    try:
        content = cell.cell_contents
    except ValueError:  # nothing in it yet
        return cell
    if not isinstance(content, _REFERRING):
        return cell  # a list that a closure fills is the closure's own
    new = redirected(content, copies, seen)
    return cell if new is content else types.CellType(new)


def _with_cells(function: types.FunctionType, cells: tuple[Any, ...]) -> types.FunctionType:
    scope = function.__globals__
    new = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__, cells)
    new.__kwdefaults__ = function.__kwdefaults__
    functools.update_wrapper(new, function)
    return new
