"""Proxies that know an example of their value, and the stand-in for ``self.training``.

A tensor's proxy *is* a tensor, on the meta device: C code that takes it without telling torch's function overrides
finds what it expects. The proxy of anything else pretends, by ``__class__``, to be what Python code asks for; C code
looks at the type instead, or would be misled by classes that torch implements, which are therefore not pretended.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch import fx

    from edp_fx.frontend.tracer import ModuleTracer

# What these return depends on the kind of tensor, never on a size: they stay plain values.
_STATIC_METHODS = frozenset({"dim", "ndimension", "is_floating_point", "is_complex", "is_contiguous"})
_PRETENDED = (bool, int, float, complex, str, tuple, list, dict, torch.dtype, torch.device)


class Untraceable(Exception):
    """The code being traced does what no graph can hold; the message says what, the traceback where."""


class ValueProxy:
    """A node of the graph that behaves as its example value where Python insists on a value.

    Sizes, dtypes and devices stay proxies (graph nodes); a bool, an int, a length or an index that Python needs is
    taken from the example and recorded as a guard.
    """

    node: fx.Node
    tracer: ModuleTracer

    def __init__(self, node: fx.Node, tracer: ModuleTracer) -> None:
        self.node, self.tracer = node, tracer

    @property
    def value(self) -> Any:
        """The example: a tensor without data, a number, a size, or a container of these."""
        return self.node.meta["val"]

    @property
    def __class__(self) -> Any:  # so that isinstance(n, int) in a forward sees what it expects
        kind = type(self.node.meta["val"])
        return kind if issubclass(kind, _PRETENDED) or not kind.__module__.startswith("torch") else ValueProxy

    @__class__.setter
    def __class__(self, cls: Any) -> None:
        raise TypeError("the class of a proxy cannot be assigned")

    def __repr__(self) -> str:
        return f"<{self.node.name}: an example of it is {self.value!r}>"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)  # Python's own protocols are those below
        if name in ("keys", "items", "values") and isinstance(self.value, dict):  # topk's result has values, too
            return functools.partial(self._entries, name)
        with torch._C.DisableTorchFunction():
            value = getattr(self.value, name)
        if name == "is_cuda":
            return self.tracer.mode.device.type == "cuda"
        if callable(value) and not isinstance(value, torch.dtype):
            if name in _STATIC_METHODS:
                return _unseen(value)
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

    def __complex__(self) -> complex:
        return self._take("complex", complex)

    def __len__(self) -> int:
        return self._take("len", len)

    def __format__(self, spec: str) -> str:
        return repr(self) if isinstance(self.value, Tensor) else format(self.value, spec)  # part of a message

    def __iter__(self) -> Iterator[Any]:
        value = self.value
        if isinstance(value, dict):
            return iter(value)
        # The length of a tuple is the program's structure, that of a tensor a size.
        count = len(value) if isinstance(value, (tuple, list)) else len(self)
        return (self._item(i) for i in range(count))

    def _item(self, index: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.getitem, (self, index), {})

    def _entries(self, what: str) -> Any:
        """Keys of a dictionary value, proxies of its values, or both."""
        found = [(key, key if what == "keys" else self._item(key)) for key in self.value]
        return found if what == "items" else [one for _, one in found]

    def __reversed__(self) -> Iterator[Any]:
        return reversed(tuple(self))

    def __contains__(self, item: Any) -> bool:
        if isinstance(self.value, dict):
            return item in self.value
        return any(bool(item == one) for one in self)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_method", "__setitem__", (self, index, value), {})

    def __round__(self, digits: int | None = None) -> Any:
        args = (self,) if digits is None else (self, digits)
        return self.tracer.create_proxy("call_function", round, args, {})

    def __hash__(self) -> int:
        return id(self)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        proxies = find_proxies((args, kwargs))
        return proxies[0].tracer.record_call(func, args, kwargs or {}, proxies)

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self


def _unseen(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of an example, whose calls are none of the model's."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return function(*args, **kwargs)

    return call


def _operation(function: Callable[..., Any], reflected: bool = False) -> Callable[..., Any]:
    def call(self: ValueProxy, *others: Any) -> Any:
        args = (*others, self) if reflected else (self, *others)
        return self.tracer.create_proxy("call_function", function, args, {})

    return call


def _in_place(method: str) -> Callable[[ValueProxy, Any], Any]:
    def call(self: ValueProxy, other: Any) -> Any:
        if not isinstance(self.value, Tensor):
            return NotImplemented  # numbers and sizes: Python goes on to the plain operator
        return self.tracer.create_proxy("call_method", method, (self, other), {})

    return call


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift", "matmul"):
    setattr(ValueProxy, f"__{_name}__", _operation(getattr(operator, _name)))
    setattr(ValueProxy, f"__r{_name}__", _operation(getattr(operator, _name), reflected=True))
for _name, _function in {"and": operator.and_, "or": operator.or_, "xor": operator.xor}.items():
    setattr(ValueProxy, f"__{_name}__", _operation(_function))
    setattr(ValueProxy, f"__r{_name}__", _operation(_function, reflected=True))
for _name in ("eq", "ne", "lt", "gt", "le", "ge", "pos", "neg", "abs", "invert", "getitem"):
    setattr(ValueProxy, f"__{_name}__", _operation(getattr(operator, _name)))
for _name in ("floor", "ceil", "trunc"):
    setattr(ValueProxy, f"__{_name}__", _operation(getattr(math, _name)))
for _name, _reflected in {"divmod": False, "rdivmod": True}.items():
    setattr(ValueProxy, f"__{_name}__", _operation(divmod, _reflected))

# Augmented assignment changes a tensor in place, and with it every view of it: the graph must do the same.
for _name, _method in {
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
    setattr(ValueProxy, f"__{_name}__", _in_place(_method))


class TensorProxy(ValueProxy, Tensor):  # type: ignore[misc]
    """The proxy of a tensor: itself a tensor of that shape and type, on the meta device.

    Python's accesses are recorded here, before any argument is parsed; what reaches torch all the same comes back by
    ``__torch_function__``.
    """

    __class__ = property(lambda self: TensorProxy)

    @staticmethod
    def __new__(cls, node: fx.Node, tracer: ModuleTracer) -> TensorProxy:
        with torch._C.DisableTorchFunction():
            return Tensor._make_subclass(cls, node.meta["val"])

    def __getattribute__(self, name: str) -> Any:
        if name in _OWN or (name.startswith("__") and name.endswith("__")):
            return object.__getattribute__(self, name)
        if name in object.__getattribute__(self, "__dict__"):
            return object.__getattribute__(self, name)
        return ValueProxy.__getattr__(self, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self.clone()


_OWN = frozenset(vars(ValueProxy)) | frozenset(vars(TensorProxy)) | {"node", "tracer"}


def find_proxies(value: Any) -> list[ValueProxy]:
    """The proxies in a nest of containers."""
    kind = type(value)
    if kind is ValueProxy or kind is TensorProxy:
        return [value]
    if kind in (tuple, list):
        return [p for one in value for p in find_proxies(one)]
    if kind is dict:
        return [p for one in value.values() for p in find_proxies(one)]
    if kind is slice:
        return find_proxies((value.start, value.stop, value.step))
    return []


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
