"""One run of a model, written down: which modules were called with what, and which tensors are read in between."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, jit, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from edp_fx.inputs import snapshot
from edp_fx.leaves import tensors_of

_CONSTANTS = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size)
_EXITS = frozenset(("numpy", "tolist", "__array__", "__dlpack__", "data_ptr", "untyped_storage", "storage"))


@dataclass(frozen=True)
class Form:
    """Containers and constants of arguments or results; tensors are left out.

    Attributes:
        spec: torch's pytree specification.
        constants: what is no tensor, None in the place of each tensor.
        places: of the tensors among the leaves.
    """

    spec: Any
    constants: tuple[Any, ...]
    places: tuple[int, ...]

    @classmethod
    def of(cls, value: Any) -> tuple[Form, list[Tensor]]:
        """The form of nested containers, and the tensors in them."""
        leaves, spec = pytree.tree_flatten(value)
        places = tuple(place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
        constants = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        return cls(spec, constants, places), [leaves[place] for place in places]

    def filled(self, tensors: Any) -> Any:
        """Containers of this form with other tensors."""
        leaves = list(self.constants)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        return pytree.tree_unflatten(leaves, self.spec)

    def foreign(self) -> str | None:
        """The type of a leaf that is neither tensor nor constant."""
        wrong = (one for one in self.constants if not isinstance(one, _CONSTANTS))
        return next((type(one).__name__ for one in wrong), None)


@dataclass
class Call:
    """One call of a module's forward.

    Attributes:
        path: of the module.
        parent: number of the call it was made in; -1 in the model's own forward.
        given, gave: form of the arguments and of the result.
        inputs, outputs: the tensors in them; they live as long as this does, so that their ids stay theirs.
        versions: of the tensors when the call was over, to see later whether something was written into them.
    """

    path: str
    parent: int
    given: Form
    inputs: list[Tensor]
    before: list[int]
    gave: Form | None = None
    outputs: list[Tensor] = field(default_factory=list)
    after: list[int] = field(default_factory=list)

    @property
    def untouched(self) -> bool:
        """Whether the tensors still hold what they held then."""
        now = [tensor._version for tensor in (*self.inputs, *self.outputs)]
        return now == [*self.before, *self.after]


class Recording:
    """What happened in one run.

    Attributes:
        calls: of all submodules, in order.
        reads: (id of a tensor that a call took or gave, or of a parameter; number of the call around the operation).
        returned: ids of the tensors in what the model gave.
    """

    def __init__(self, model: nn.Module) -> None:
        self.calls: list[Call] = []
        self.reads: set[tuple[int, int]] = set()
        self.returned: set[int] = set()
        self._known = {id(parameter) for parameter in model.parameters()}
        self._stack: list[int] = []

    def call(self, path: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Runs a module's forward and writes it down."""
        given, inputs = Form.of((args, kwargs))
        number = len(self.calls)
        one = Call(path, self._stack[-1] if self._stack else -1, given, inputs, [t._version for t in inputs])
        self.calls.append(one)
        self._known.update(map(id, inputs))
        self._stack.append(number)
        try:
            result = forward(*args, **kwargs)
        finally:
            self._stack.pop()
        one.gave, one.outputs = Form.of(result)
        one.after = [tensor._version for tensor in one.outputs]
        self._known.update(map(id, one.outputs))
        return result

    def read(self, values: Any) -> None:
        """Notes that an operation looks at tensors."""
        for leaf in pytree.tree_leaves(values):
            if isinstance(leaf, Tensor) and id(leaf) in self._known:
                self.reads.add((id(leaf), self._stack[-1] if self._stack else -1))

    def around(self, number: int) -> Iterator[Call]:
        """A call by its number, and those it was made in."""
        while number >= 0:
            yield self.calls[number]
            number = self.calls[number].parent


class _Operations(TorchDispatchMode):
    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording = recording

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.overloadpacket.__name__.startswith("new_"):  # takes nothing but the type and the device
            self._recording.read((args, kwargs))
        return func(*args, **(kwargs or {}))


class _Exits(TorchFunctionMode):
    """What looks at a tensor's values without an operation."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording = recording

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _EXITS:
            self._recording.read(args)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def record(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, train: bool) -> Recording:
    """Run ``model`` on its own arguments in train or eval mode; modes, attributes, buffers and random numbers stay."""
    recording = Recording(model)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    restores = [snapshot(module) for module in model.modules()]
    devices = [one for one in {tensor.device for tensor, _ in buffers} if one.type == "cuda"]
    try:
        for path, module in model.named_modules():
            module.__dict__["training"] = train
            if path and not isinstance(module, jit.ScriptModule):
                module.__dict__["forward"] = functools.partial(recording.call, path, module.forward)
        with torch.random.fork_rng(devices=devices), _Exits(recording), _Operations(recording):
            torch.manual_seed(0)
            result = model(*args, **kwargs)
    finally:
        for restore in restores:
            restore()
        for buffer, value in buffers:
            buffer.copy_(value)
    recording.returned = set(map(id, tensors_of(result)))
    return recording
