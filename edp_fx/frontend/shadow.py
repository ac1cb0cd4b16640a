"""Stand-ins for a model's modules: what a traced forward does to ``self`` it does to these, never to the user's own.

A stand-in has the class of its module, its attributes, and its parameters and buffers as proxies. Whatever calls it
calls the tracer. Two threads that trace one model have stand-ins of their own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, jit, nn

from edp_fx.frontend.references import redirected
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

    References to modules are followed, see :func:`redirected`.
    """

    def __init__(self, root: nn.Module, tracer: ModuleTracer) -> None:
        self._tracer = tracer
        self._originals: dict[int, nn.Module] = {}  # by the id of their stand-in
        self._paths: dict[int, str] = {}
        self._known: dict[int, nn.Module] = {}  # by the id of what is stood in for
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

    def path(self, shadow: nn.Module) -> str:
        """Where in the model the module is."""
        return self._paths[id(shadow)]

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

    def reset(self, shadow: nn.Module, *, training: bool = False) -> None:
        """Put a stand-in into the state that its module is in; it reads as in that mode. Others are left alone."""
        module = self._originals.get(id(shadow))
        if module is None:
            return
        state = shadow.__dict__
        state.clear()
        if isinstance(module, jit.ScriptModule):
            nn.Module.__init__(shadow)
            state["forward"] = module.__call__
        else:
            for key, value in module.__dict__.items():
                state[key] = redirected(value, self._known)
            state["_parameters"] = _Tensors(module._parameters, self._tracer)
            state["_buffers"] = _Tensors(module._buffers, self._tracer)
        state["training"] = training
        state["_compiled_call_impl"] = functools.partial(self._tracer.call_module, shadow)
