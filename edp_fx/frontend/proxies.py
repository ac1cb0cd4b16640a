"""Proxies that know an example of their value, and the stand-in for ``self.training``."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

if TYPE_CHECKING:
    from edp_fx.frontend.tracer import ModuleTracer

# What these return depends on the kind of tensor, never on a size: they stay plain values.
_STATIC_METHODS = frozenset({"dim", "ndimension", "is_floating_point", "is_complex", "is_contiguous"})


class ValueProxy(fx.Proxy):
    """An fx proxy that behaves as its example value where Python insists on a value.

    Sizes, dtypes and devices stay proxies (graph nodes); a bool, an int, a length or an index that Python needs is
    taken from the example and recorded as a guard.
    """

    tracer: ModuleTracer

    @property
    def value(self) -> Any:
        """The example: a fake tensor, a number, a size, or a container of these."""
        return self.node.meta["val"]

    @property
    def __class__(self) -> Any:  # so that isinstance(x, torch.Tensor) in a forward sees what it expects
        value = self.__dict__["node"].meta.get("val")
        return Tensor if isinstance(value, Tensor) else type(value)

    @__class__.setter
    def __class__(self, cls: Any) -> None:
        raise TypeError("the class of a proxy cannot be assigned")

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.value, name)
        if name == "is_cuda":
            return self.tracer.mode.device.type == "cuda"
        if callable(value) and not isinstance(value, torch.dtype):
            if name in _STATIC_METHODS:
                return value
            return _Method(self, name)
        if value is None or isinstance(value, (bool, str)) or name in ("ndim", "layout"):
            return value
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def _take(self, kind: str, convert: Callable[[Any], Any]) -> Any:
        return self.tracer.take(self, kind, convert)

    def __bool__(self) -> bool:
        return self._take("bool", bool)

    def __int__(self) -> int:
        return self._take("int", int)

    def __index__(self) -> int:
        return self._take("index", operator.index)

    def __float__(self) -> float:
        return self._take("float", float)

    def __len__(self) -> int:
        return self._take("len", len)

    def __iter__(self) -> Iterator[Any]:
        value = self.value
        if isinstance(value, dict):
            return iter(value)
        # The length of a tuple is the program's structure, that of a tensor a size.
        count = len(value) if isinstance(value, (tuple, list)) else len(self)
        return (self._item(i) for i in range(count))

    def _item(self, index: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.getitem, (self, index), {})

    def keys(self) -> Any:
        """The keys of a dictionary value."""
        return self.value.keys()

    def items(self) -> Any:
        """Key and proxy pairs of a dictionary value."""
        return [(key, self._item(key)) for key in self.value]

    def values(self) -> Any:
        """The proxies of a dictionary value, in order."""
        return [self._item(key) for key in self.value]

    def __contains__(self, item: Any) -> bool:
        if isinstance(self.value, dict):
            return item in self.value
        return any(bool(item == one) for one in self)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_method", "__setitem__", (self, index, value), {})

    def __round__(self, digits: int | None = None) -> Any:
        args = (self,) if digits is None else (self, digits)
        return self.tracer.create_proxy("call_function", round, args, {})

    def __floor__(self) -> Any:
        return self.tracer.create_proxy("call_function", math.floor, (self,), {})

    def __ceil__(self) -> Any:
        return self.tracer.create_proxy("call_function", math.ceil, (self,), {})

    def __trunc__(self) -> Any:
        return self.tracer.create_proxy("call_function", math.trunc, (self,), {})

    def __divmod__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", divmod, (self, other), {})

    def __hash__(self) -> int:
        return id(self)


def _in_place(method: str) -> Callable[[ValueProxy, Any], Any]:
    def call(self: ValueProxy, other: Any) -> Any:
        if not isinstance(self.value, Tensor):
            return NotImplemented  # numbers and sizes: Python goes on to the plain operator
        return self.tracer.create_proxy("call_method", method, (self, other), {})

    return call


# Augmented assignment changes a tensor in place, and with it every view of it: the graph must do the same.
for _operator, _name in {
    "iadd": "add_",
    "isub": "sub_",
    "imul": "mul_",
    "itruediv": "div_",
    "ifloordiv": "floor_divide_",
    "imod": "remainder_",
    "ipow": "pow_",
    "iand": "bitwise_and_",
    "ior": "bitwise_or_",
    "ixor": "bitwise_xor_",
}.items():
    setattr(ValueProxy, f"__{_operator}__", _in_place(_name))


class _Method:
    """A method of a proxied value, waiting for its arguments."""

    def __init__(self, owner: ValueProxy, name: str) -> None:
        self.owner, self.name = owner, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.owner.tracer.create_proxy("call_method", self.name, (self.owner, *args), kwargs)


class TrainingFlag:
    """Stands in for ``module.training`` while the module is traced, so that every reading of it is noticed."""

    def __init__(self, tracer: ModuleTracer, path: str) -> None:
        self.tracer, self.path = tracer, path

    def __bool__(self) -> bool:
        return self.tracer.read_training(self.path)
