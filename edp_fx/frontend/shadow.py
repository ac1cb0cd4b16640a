"""Stand-ins for a model's modules: what a traced forward does to ``self`` it does to these, never to the user's own.

A stand-in has the class of its module, its attributes, and its parameters and buffers as proxies. Whatever calls it
calls the tracer. Two threads that trace one model have stand-ins of their own.
"""

from __future__ import annotations

import functools
import types
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, jit, nn

from edp_fx.inputs import snapshot

if TYPE_CHECKING:
    from edp_fx.frontend.tracer import ModuleTracer


class _Tensors(dict[str, Any]):
    """The parameters or buffers of a module; one that is looked up is a node of the graph."""

    def __init__(self, tensors: Any, tracer: ModuleTracer) -> None:
        super().__init__(tensors)
        self._tracer = tracer

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        return self._tracer.attribute(value) if isinstance(value, Tensor) else value


class Shadows:
    """A stand-in for every module below ``root``, by the path that it has first.

    References to modules are followed through containers, bound methods, partial functions and closures.
    """

    def __init__(self, root: nn.Module, tracer: ModuleTracer) -> None:
        self._tracer = tracer
        self._originals: dict[int, nn.Module] = {}  # by the id of their stand-in
        self._paths: dict[int, str] = {}
        self._known: dict[int, Any] = {}  # by the id of what is stood in for
        self._modules = modules = list(root.named_modules())
        for path, module in modules:
            scripted = isinstance(module, jit.ScriptModule)
            shadow: nn.Module = object.__new__(nn.Module if scripted else type(module))
            self._known[id(module)] = shadow
            self._originals[id(shadow)] = module
            self._paths[id(shadow)] = path
        self.root: nn.Module = self._known[id(root)]
        for _, module in modules:
            self.reset(self._known[id(module)])

    def path(self, shadow: nn.Module) -> str | None:
        """Where in the model the module is; None for one that the forward itself has made."""
        return self._paths.get(id(shadow))

    @functools.cached_property
    def plain_tensors(self) -> dict[int, str]:
        """The names of tensors that are neither parameters nor buffers, by their ids."""
        return {
            id(value): f"{path}.{key}" if path else key
            for path, module in self._modules
            for key, value in module.__dict__.items()
            if isinstance(value, Tensor)
        }

    def keep(self, shadow: nn.Module) -> Callable[[], None]:
        """A way back to the state that a stand-in is in now."""
        restore, buffers = snapshot(shadow), dict(shadow._buffers)

        def back() -> None:
            restore()
            shadow._buffers.clear()
            shadow._buffers.update(buffers)

        return back

    def reset(self, shadow: nn.Module) -> None:
        """Put a stand-in into the state that its module is in; it reads as in eval mode."""
        module = self._originals[id(shadow)]
        state = shadow.__dict__
        state.clear()
        if isinstance(module, jit.ScriptModule):
            nn.Module.__init__(shadow)
            state["forward"] = module.__call__
        else:
            for key, value in module.__dict__.items():
                state[key] = value if value is None or isinstance(value, _PLAIN) else self._map(value, {})
            state["_parameters"] = _Tensors(module._parameters, self._tracer)
            state["_buffers"] = _Tensors(module._buffers, self._tracer)
        state["training"] = False
        state["_compiled_call_impl"] = functools.partial(self._tracer.call_module, shadow)

    def _map(self, value: Any, seen: dict[int, Any]) -> Any:
        """``value`` with stand-ins for modules; containers are copied, so that the user's own stay as they are."""
        if isinstance(value, nn.Module):
            return self._known.get(id(value), value)
        if id(value) in seen:
            return seen[id(value)]
        kind = type(value)
        if kind in (list, set, dict, OrderedDict):
            new = seen[id(value)] = kind()
            if kind is list:
                new.extend(self._map(one, seen) for one in value)
            elif kind is set:
                new.update(self._map(one, seen) for one in value)
            else:
                new.update((key, self._map(one, seen)) for key, one in value.items())
            return new
        seen[id(value)] = value
        if kind is tuple:
            return _changed(value, tuple(self._map(one, seen) for one in value))
        if kind is types.MethodType:
            owner = self._map(value.__self__, seen)
            return value if owner is value.__self__ else types.MethodType(value.__func__, owner)
        if kind is functools.partial:
            inner = (value.func, value.args, value.keywords)
            mapped = tuple(self._map(one, seen) for one in inner)
            same = mapped[0] is inner[0] and mapped[1] is inner[1] and _changed(inner[2], mapped[2]) is inner[2]
            return value if same else functools.partial(mapped[0], *mapped[1], **mapped[2])
        if kind is types.FunctionType and value.__closure__:
            return self._function(value, seen)
        return value

    def _function(self, function: types.FunctionType, seen: dict[int, Any]) -> types.FunctionType:
        cells = tuple(self._cell(cell, seen) for cell in function.__closure__ or ())
        if all(new is old for new, old in zip(cells, function.__closure__ or ())):
            return function
        new = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, function.__defaults__, cells
        )
        new.__kwdefaults__ = function.__kwdefaults__
        return functools.wraps(function)(new)

    def _cell(self, cell: types.CellType, seen: dict[int, Any]) -> types.CellType:
        try:
            content = cell.cell_contents
        except ValueError:  # nothing in it yet
            return cell
        if not isinstance(content, (nn.Module, types.MethodType, types.FunctionType, functools.partial, tuple)):
            return cell  # a list that a closure fills is the closure's own
        mapped = self._map(content, seen)
        return cell if mapped is content else types.CellType(mapped)


_PLAIN = (bool, int, float, str, Tensor)


def _changed(old: Any, new: Any) -> Any:
    """``new``, or ``old`` where it holds the same objects."""
    pairs = zip(old.values(), new.values()) if isinstance(old, dict) else zip(old, new)
    return old if all(one is other for one, other in pairs) else new
