"""What the tracer puts in the way of a running forward, and how it undoes what the forward did to its modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.fx
from torch.overrides import TorchFunctionMode

from edp_fx.frontend.proxies import ValueProxy

if TYPE_CHECKING:
    from edp_fx.frontend.tracer import ModuleTracer

# Calls that draw numbers: a call without any traced argument must still become a node, or its draw is frozen.
_RANDOM = (torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal, torch.empty)
# Calls whose C++ argument parser rejects a proxy before any dispatch could see it.
_PARSED_EARLY = (
    "arange", "zeros", "ones", "full", "empty", "eye", "linspace", "logspace", "tensor", "as_tensor",
    "scalar_tensor", "rand", "randn", "randint", "randperm", "normal", "finfo", "iinfo",
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
        proxies = find_proxies((args, kwargs))
        if proxies or func in _RANDOM:
            return self.tracer.record_call(func, args, kwargs, proxies)
        return func(*args, **kwargs)


def find_proxies(value: Any) -> list[ValueProxy]:
    """The proxies in a nest of containers."""
    kind = type(value)
    if kind is ValueProxy:
        return [value]
    if kind in (tuple, list):
        return [p for one in value for p in find_proxies(one)]
    if kind is dict:
        return [p for one in value.values() for p in find_proxies(one)]
    if kind is slice:
        return find_proxies((value.start, value.stop, value.step))
    return []


@contextmanager
def wrapped_functions_open() -> Iterator[None]:
    """Trace through functions that libraries have marked as leaves for plain symbolic tracing: layers hide in some."""
    registry = torch.fx._symbolic_trace._wrapped_fns_to_patch
    marked = dict(registry)
    registry.clear()
    try:
        yield
    finally:
        registry.update(marked)


@contextmanager
def patched_factories(tracer: ModuleTracer) -> Iterator[None]:
    """Functions whose arguments C++ parses first are recorded when a proxy is among their arguments."""
    originals = {name: getattr(torch, name) for name in _PARSED_EARLY}

    def wrap(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            proxies = () if tracer.evaluating else find_proxies((args, kwargs))
            return (
                tracer.create_proxy("call_function", original, args, kwargs) if proxies else original(*args, **kwargs)
            )

        return call

    try:
        for name, original in originals.items():
            setattr(torch, name, wrap(original))
        yield
    finally:
        for name, original in originals.items():
            setattr(torch, name, original)
