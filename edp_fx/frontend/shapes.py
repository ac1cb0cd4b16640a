"""Running code for the shapes of its results: no memory, no arithmetic, and little time."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

from edp_fx.frontend.shortcuts import FUNCTIONS, META
from edp_fx.leaves import map_tensors

# Functions that make tensors from nothing. torch remembers them, and the functions that can be overridden, when first
# asked; that must not happen while the tracer has some of them wrapped.
_CONSTRUCTORS = frozenset(_device_constructors())
torch.overrides.is_tensor_method_or_property(torch.relu)


def call_key(value: Any) -> Any:
    """What the shape of a result depends on; raises TypeError for what cannot be compared."""
    if isinstance(value, Tensor):
        return (value.shape, value.stride(), value.dtype)
    kind = type(value)
    if kind in (tuple, list):
        return (kind, *map(call_key, value))
    if kind is slice:
        return (slice, value.start, value.stop, value.step)
    hash(value)
    return (kind, value)


def empty_again(value: Any) -> Any:
    """New tensors without data, of the shapes and strides of those in ``value``."""
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=META)
    if type(value) in (tuple, list):
        return type(value)(map(empty_again, value))
    return value


def _flat(value: Any) -> list[Tensor]:
    """The tensors in nested tuples and lists, in order."""
    if isinstance(value, Tensor):
        return [value]
    return [one for inner in value for one in _flat(inner)] if type(value) in (tuple, list) else []


class _Remembered:
    """What a call gave, and which of its tensors show the memory of which operand, and from where on.

    Args:
        result: what it gave.
        given: its arguments.
    """

    def __init__(self, result: Any, given: Any) -> None:
        self.result = result
        operands = _flat(given)
        memory = {one.untyped_storage()._cdata: place for place, one in enumerate(operands)}
        self._shown: dict[int, tuple[int, int]] = {}
        for one in _flat(result):
            place = memory.get(one.untyped_storage()._cdata)
            if place is not None:
                self._shown[id(one)] = (place, int(one.storage_offset() - operands[place].storage_offset()))

    def again(self, given: Any) -> Any:
        """The same for other arguments of the same shapes and strides."""
        return self._again(self.result, _flat(given)) if self._shown else empty_again(self.result)

    def _again(self, value: Any, operands: list[Tensor]) -> Any:
        if type(value) in (tuple, list):
            return type(value)(self._again(one, operands) for one in value)
        if id(value) not in self._shown:
            return empty_again(value)
        place, offset = self._shown[id(value)]
        source = operands[place]
        return source.as_strided(value.shape, value.stride(), source.storage_offset() + offset)


class ShapeMode(TorchFunctionMode):
    """Takes every tensor that meets an op, and every device argument, to the meta device.

    What a call gave is remembered by its arguments' shapes, so a network's repeated blocks cost one; views are views of
    the arguments at hand. Fake tensors would do the same several times slower; all they add is the device, which is
    known: that of the inputs.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self._metas: dict[int, tuple[Tensor, Tensor]] = {}
        self._results: dict[Any, _Remembered] = {}

    @cached_property
    def _fakes(self) -> FakeTensorMode:
        """Made when first needed: it writes down the whole stack of calls."""
        return FakeTensorMode(allow_non_fake_inputs=True)

    def meta(self, tensor: Tensor) -> Tensor:
        """``tensor`` without data; the same one for the same tensor."""
        if type(tensor) is Tensor and tensor.is_meta:
            return tensor
        known = self._metas.get(id(tensor))
        if known is None or known[0] is not tensor:
            new = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META)
            known = self._metas[id(tensor)] = (tensor, new)
        return known[1]

    def fake(self, value: Any) -> Any:
        """``value`` as kept in node metadata: fake tensors that know their device."""
        if isinstance(value, Tensor):
            return FakeTensor(self._fakes, self.meta(value), self.device)
        return map_tensors(self.fake, value)

    def lower(self, value: Any) -> Any:
        """``value`` with its tensors and devices on the meta device."""
        if isinstance(value, Tensor):
            return self.meta(value)
        kind = type(value)
        if kind is torch.device:
            return META
        if isinstance(value, list):
            return [self.lower(v) for v in value]
        return tuple(map(self.lower, value)) if kind is tuple else value

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.__name__
        if name == "__get__":
            return func(*args)
        with torch._C.DisableTorchFunction():  # modes below this one too: what a call is made of is its own business
            args = tuple(map(self.lower, args))
            kwargs = {k: self.lower(v) for k, v in kwargs.items()} if kwargs else {}
            try:
                key = (func, call_key(args), *((k, call_key(v)) for k, v in kwargs.items()))
                if key in self._results:
                    return self._results[key].again((args, tuple(kwargs.values())))
            except TypeError:
                key = None
            result = self._call(func, name, args, kwargs)
        if key is not None and (not name.endswith("_") or name.endswith("__")):
            self._results[key] = _Remembered(result, (args, tuple(kwargs.values())))
        return result

    @staticmethod
    def _call(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in FUNCTIONS:
            return FUNCTIONS[func](*args, **kwargs)
        if name in ("cpu", "cuda"):
            return args[0]
        if isinstance(kwargs.get("device"), str) or (func in _CONSTRUCTORS and kwargs.get("device") is None):
            kwargs["device"] = META
        if name == "to" and len(args) > 1 and isinstance(args[1], str):
            args = (args[0], META, *args[2:])
        return func(*args, **kwargs)


class shapes_only:
    """Context: run code for the shapes of its results, without gradients."""

    def __init__(self, mode: ShapeMode) -> None:
        self._mode, self._no_grad = mode, torch.no_grad()

    def __enter__(self) -> None:
        self._no_grad.__enter__()
        self._mode.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._mode.__exit__(*error)
        self._no_grad.__exit__(*error)
