"""What the tracer puts in the way of a running forward: calls that the proxies alone would not see.

Torch calls are seen by a mode, which belongs to the thread that traces. No mode sees functions whose C++ argument
parser refuses a proxy, Python's ``math``, and autograd and scripted functions. For these torch's and Python's own
names are wrapped while any thread traces; a wrapper acts on proxies alone and passes everything else on.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._C import ScriptFunction
from torch.autograd.function import FunctionMeta
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from edp_fx.frontend.proxies import Untraceable, find_proxies

if TYPE_CHECKING:
    from edp_fx.frontend.tracer import ModuleTracer

# Calls that draw numbers: a call without any traced argument must still become a node, or its draw is frozen.
RANDOM = (torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal, torch.empty)
# Calls whose C++ argument parser rejects a proxy before any dispatch could see it.
_PARSED_EARLY = (
    "arange", "zeros", "ones", "full", "empty", "eye", "linspace", "logspace", "tensor", "as_tensor",
    "scalar_tensor", "rand", "randn", "randint", "randperm", "normal", "finfo", "iinfo",
    "full_like", "where", "clamp",
)  # fmt: skip


class RecordCalls(TorchFunctionMode):
    """Sees torch calls on plain tensors that have proxies (sizes, say) among their other arguments."""

    def __init__(self, tracer: ModuleTracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.tracer.evaluating:
            return func(*args, **kwargs)
        if func is torch._C._set_grad_enabled:
            self.tracer.grad_enabled = args[0]
        proxies = find_proxies((args, kwargs))
        if not proxies and func not in RANDOM:
            args, kwargs = tree_map_only(Tensor, self.tracer.found_again, (args, kwargs))
            proxies = find_proxies((args, kwargs))
            if not proxies:
                return func(*args, **kwargs)
        return self.tracer.record_call(func, args, kwargs, proxies)


def _recorded(original: Callable[..., Any]) -> Callable[..., Any]:
    """``original``, that becomes a node of the graph where a proxy is among its arguments."""

    def call(*args: Any, **kwargs: Any) -> Any:
        proxies = find_proxies((args, kwargs))
        if not proxies:
            return original(*args, **kwargs)
        return proxies[0].tracer.record_call(original, args, kwargs, proxies)

    return call


def _inlined(original: Callable[..., Any]) -> Callable[..., Any]:
    """Calls of scripted functions: given a proxy, the Python function that was scripted is traced through."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not find_proxies((args, kwargs)):
            return original(self, *args, **kwargs)
        if not hasattr(self, "_torchdynamo_inline"):
            raise Untraceable(f"the function {self.name} was traced by torch.jit, and its Python code is gone")
        return self._torchdynamo_inline(*args, **kwargs)

    return call


def _class_attribute(cls: type, name: str) -> Any:
    """Attribute access of autograd functions: C++ looks up ``forward`` when one is applied, to whatever it is given."""
    value = type.__getattribute__(cls, name)
    if name != "forward":
        return value

    @functools.wraps(value)
    def forward(*args: Any, **kwargs: Any) -> Any:
        proxies = find_proxies((args, kwargs))
        if not proxies:
            return value(*args, **kwargs)
        context = args and isinstance(args[0], cls._backward_cls)  # type: ignore[attr-defined]
        return proxies[0].tracer.apply_function(cls, args[1:] if context else args)

    return forward


class _Wrappers:
    """Puts the wrappers in place with the first thread that traces, and takes them away with the last."""

    def __init__(self) -> None:
        self._lock, self._users, self._originals = threading.Lock(), 0, []  # type: ignore[var-annotated]

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users > 1:
                return
            names: list[tuple[Any, str]] = [(torch, name) for name in _PARSED_EARLY]
            names += [(math, name) for name, value in vars(math).items() if callable(value) and name[0] != "_"]
            names += [(ScriptFunction, "__call__")]
            self._originals = [(home, name, vars(home)[name]) for home, name in names]
            for home, name, original in self._originals:
                setattr(home, name, (_inlined if home is ScriptFunction else _recorded)(original))
            FunctionMeta.__getattribute__ = _class_attribute  # type: ignore[method-assign,assignment]

    def __exit__(self, *error: Any) -> None:
        with self._lock:
            self._users -= 1
            if self._users:
                return
            del FunctionMeta.__getattribute__
            for home, name, original in self._originals:
                setattr(home, name, original)


wrappers = _Wrappers()
"""Context: the wrappers are in place."""
