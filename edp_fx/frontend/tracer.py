"""A symbolic tracer that keeps modules, follows shapes as graph nodes and works on example values."""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from edp_fx.frontend.interception import RecordCalls, patched_factories, wrapped_functions_open
from edp_fx.frontend.layers import DROPOUTS, AttentionDropout
from edp_fx.frontend.propagate import evaluate
from edp_fx.frontend.proxies import TrainingFlag, ValueProxy
from edp_fx.frontend.shapes import ShapeMode, shapes_only
from edp_fx.inputs import COMPUTE_LAYERS, snapshot
from edp_fx.pairs import Pair
from edp_fx.refusal import Refusal

_LEAF_TYPES = (
    *COMPUTE_LAYERS,
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)


@dataclass(frozen=True)
class Guard:
    """A value the model's Python code took from the example: the graph holds for inputs that agree on it."""

    node: str
    kind: str
    value: Any
    module: str


class ReadsTraining(Exception):
    """The module being traced reads ``self.training`` and holds no convolution or linear layer: a leaf."""


def _undispatched(function: Callable[..., Any]) -> Callable[..., Any]:
    """The Python body of a torch function, without the check that hands proxies away as one opaque call."""
    assert isinstance(function, types.FunctionType)
    scope = {**function.__globals__, "has_torch_function": lambda *_: False}
    body = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__)
    body.__kwdefaults__ = function.__kwdefaults__
    return body


# Functions that contain linear layers: traced through.
_COMPOSITE = {F.multi_head_attention_forward: _undispatched(F.multi_head_attention_forward)}


class ModuleTracer(fx.Tracer):
    """Traces a module on fake example inputs.

    Leaves are torch.nn's own modules without children, subclasses of convolution, linear and norm layers, and
    modules that read ``self.training`` without owning a layer. A submodule that cannot be traced through becomes
    an opaque leaf, with the reason in ``opaque``.

    Args:
        inputs: example inputs, one a positional argument of ``forward``; the others keep their defaults.
        training: what ``self.training`` reads as.
        force_opaque: paths of modules to keep as leaves, with the reason.
        mode: the shape run of an earlier trace, whose results it remembers.
    """

    def __init__(
        self,
        inputs: tuple[Tensor, ...],
        *,
        training: bool = True,
        force_opaque: dict[str, str] | None = None,
        mode: ShapeMode | None = None,
    ) -> None:
        super().__init__(autowrap_modules=(math,))
        self.inputs, self.training = inputs, training
        self.force_opaque = force_opaque or {}
        self.mode = mode or ShapeMode(inputs[0].device)
        self.guards: list[Guard] = []
        self.opaque: list[Refusal] = []
        self.mode_readers: set[str] = set()
        self.extra_modules: dict[str, nn.Module] = {}
        self.constant_values: dict[str, Tensor] = {}
        self.evaluating = False
        self._attributes: dict[str, ValueProxy] = {}
        self._names: dict[int, str] = {}
        self._stack: list[str] = []
        self._called: set[int] = set()
        self._before: dict[int, Callable[[], None]] = {}

    # Entry -----------------------------------------------------------------------------------------------------

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """The graph of ``root``; every attribute of its modules is as before afterwards."""
        self._names = {id(p): n for n, p in root.named_parameters()} | {id(b): n for n, b in root.named_buffers()}
        self._buffers = dict(root.named_buffers())
        modules = list(root.modules())
        self._before = {id(module): snapshot(module) for module in modules}
        try:
            for module in modules:
                module.__dict__["training"] = False
            root.__dict__["training"] = TrainingFlag(self, "")
            self._stack.append("")
            with wrapped_functions_open(), patched_factories(self), RecordCalls(self):
                graph = super().trace(root)
            self._write_back(graph, root)
        finally:
            for restore in self._before.values():
                restore()
        return graph

    def _write_back(self, graph: fx.Graph, root: nn.Module) -> None:
        """Buffers that the forward assigned anew are written at the end of the graph."""
        output = next(iter(reversed(graph.nodes)))
        for path, module in root.named_modules():
            for name, value in module._buffers.items():
                target = f"{path}.{name}" if path else name
                if type(value) is not ValueProxy or not isinstance(value.value, Tensor):
                    continue
                with graph.inserting_before(output):
                    buffer = graph.create_node("get_attr", target, (), {})
                    buffer.meta["val"] = self.mode.meta(self._buffers[target])
                    if value.value.shape != buffer.meta["val"].shape:
                        graph.erase_node(buffer)  # a cache of another size
                        continue
                    written = graph.create_node("call_method", "copy_", (buffer, value.node), {})
                    written.meta["val"] = buffer.meta["val"]

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Placeholders for the example inputs; further arguments of ``forward`` are left at their defaults."""
        names: list[str] = []
        for name, parameter in list(inspect.signature(root_fn).parameters.items())[1:]:
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                names += [f"{name}_{i}" for i in range(len(names), len(self.inputs))]
            elif parameter.kind in (
                inspect.Parameter.POSITIONAL_ONLY,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
            ):
                names.append(name)
        names += [f"input_{i}" for i in range(len(names), len(self.inputs))]
        arguments: list[Any] = [self.root]
        for name, example in zip(names, self.inputs):
            node = self.create_node("placeholder", name, (), {})
            node.meta["val"] = self.mode.meta(example)
            arguments.append(self.proxy(node))
        return root_fn, arguments

    # Values ----------------------------------------------------------------------------------------------------

    def proxy(self, node: fx.Node) -> ValueProxy:
        """Wrap a node that has its value."""
        return ValueProxy(node, self)

    def create_arg(self, a: Any) -> Any:
        """Lower an argument; a training flag that is not understood elsewhere is read here."""
        if type(a) is ValueProxy:
            return a.node
        if type(a) is TrainingFlag:
            return bool(a)
        lowered = super().create_arg(a)
        if isinstance(lowered, fx.Node) and "val" not in lowered.meta:
            if not isinstance(a, Tensor):  # a named tuple, made by a node
                lowered.meta["val"] = self.evaluate(lowered)
                return lowered
            lowered.meta["val"] = self.mode.meta(a)
            if str(lowered.target) not in self._names.values():
                self.constant_values[str(lowered.target)] = a
        return lowered

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        """Record a node and compute its value."""
        if kind == "call_function":
            if target is torch._assert:
                bool(args[0])
                return None
            if target in DROPOUTS:
                made = self._dropout(target, args, kwargs)
                if made is not None:
                    return made
            if target is F.scaled_dot_product_attention:
                args, kwargs, module = _attention(args, kwargs)
                if module is not None:
                    kind, target = "call_module", self._add_module("attention", module)
        node = self.create_node(kind, target, self.create_arg(tuple(args)), self.create_arg(dict(kwargs)))
        node.meta["val"] = self.evaluate(node)
        proxy = self.proxy(node)
        if not torch.is_grad_enabled() and isinstance(proxy.value, Tensor) and proxy.value.is_floating_point():
            # A forward that computes this under no_grad: say so in the graph, whose run has no such context.
            detached = self.create_node("call_method", "detach", (node,), {})
            detached.meta["val"] = proxy.value
            return self.proxy(detached)
        return proxy

    def evaluate(self, node: fx.Node) -> Any:
        """The value of a node from those of its arguments."""
        self.evaluating = True
        try:
            if node.op == "call_module" and node.target in self.extra_modules:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
                with shapes_only(self.mode):
                    return self.extra_modules[str(node.target)].eval()(*args, **kwargs)
            if node.op == "get_attr" and node.target in self.constant_values:
                return self.mode.meta(self.constant_values[str(node.target)])
            if node.target is getattr and node.args[1] == "device":
                return self.mode.device
            return evaluate(self.root, node, self.mode)
        finally:
            self.evaluating = False

    def take(self, proxy: ValueProxy, kind: str, convert: Callable[[Any], Any]) -> Any:
        """Give Python the value it insists on, and note that the graph now depends on it."""
        value = proxy.value
        if isinstance(value, Tensor) and kind != "len":
            node = proxy.node
            if node.op != "get_attr":
                raise TypeError(f"{kind}() of a computed tensor: the model's control flow depends on its input")
            value = _attribute(self.root, str(node.target))  # a buffer read as a setting
        taken = convert(value)
        self.guards.append(Guard(proxy.node.name, kind, taken, self._stack[-1]))
        return taken

    def record_call(self, func: Any, args: Any, kwargs: Any, proxies: list[ValueProxy]) -> Any:
        """A torch call that argument parsing, not the model, may already have asked proxies for values."""
        names = {proxy.node.name for proxy in proxies}
        while self.guards and self.guards[-1].kind == "index" and self.guards[-1].node in names:
            self.guards.pop()
        if any(isinstance(proxy.value, Tensor) for proxy in proxies) and func in _COMPOSITE:
            return _COMPOSITE[func](*args, **kwargs)
        if torch.overrides.is_tensor_method_or_property(func):
            name = func.__name__
            if name == "__get__":
                return self.create_proxy("call_function", getattr, (args[0], func.__self__.__name__), {})
            return self.create_proxy("call_method", name, args, kwargs)
        return self.create_proxy("call_function", func, args, kwargs)

    # Modules ---------------------------------------------------------------------------------------------------

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Parameters and buffers read by a forward are graph nodes."""
        if self.evaluating or not isinstance(attr_val, Tensor):
            return attr_val
        name = self._names.get(id(attr_val))
        if name is None:
            return attr_val
        if name not in self._attributes:
            node = self.create_node("get_attr", name, (), {})
            node.meta["val"] = self.mode.meta(attr_val)
            self._attributes[name] = self.proxy(node)
        return self._attributes[name]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is a single node, whatever its forward does."""
        if isinstance(m, _LEAF_TYPES) or module_qualified_name in self.force_opaque:
            return True
        return type(m).__module__.startswith("torch.nn.") and not m._modules

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """A node for a leaf, the module's own nodes otherwise; what cannot be traced is rolled back to a leaf."""
        if self.evaluating:
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        if path in self.force_opaque:
            self.opaque.append(Refusal(path, self.force_opaque[path]))
        if self.is_leaf_module(m, path):
            return self.create_proxy("call_module", path, args, kwargs)
        if isinstance(m, Pair):  # shown as its two layers, whatever its fused forward computes

            def forward(*args: Any, **kwargs: Any) -> Any:
                return nn.Sequential.forward(m, *args, **kwargs)

        undo = self._checkpoint(m)
        was = m.__dict__["training"]
        m.__dict__["training"] = TrainingFlag(self, path)
        self._stack.append(path)
        try:
            with fx.proxy.ScopeContextManager(self.scope, fx.proxy.Scope(path, type(m))):
                self.module_stack[path] = (path, type(m))
                try:
                    return forward(*args, **kwargs)
                finally:
                    self.module_stack.pop(path, None)
        except ReadsTraining as stop:
            if stop.args != (path,):
                raise
            reason = None
        except Exception as error:
            reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        finally:
            self._stack.pop()
            m.__dict__["training"] = was
        undo()
        proxy = self.create_proxy("call_module", path, args, kwargs)
        if reason is not None:
            self.opaque.append(Refusal(path, reason))
        return proxy

    def read_training(self, path: str) -> bool:
        """``self.training`` was asked for by the module at ``path``."""
        module = self.root.get_submodule(path)
        if path and not any(isinstance(one, COMPUTE_LAYERS) for one in module.modules()):
            raise ReadsTraining(path)
        self.mode_readers.add(path)
        return self.training

    def _checkpoint(self, m: nn.Module) -> Callable[[], None]:
        """A way back to where ``m`` was called.

        The first call of a module finds it as it was before the trace; only for a later one its state is copied.
        """
        last = next(iter(reversed(self.graph.nodes)), None)
        guards, opaque, modules = len(self.guards), len(self.opaque), len(self.extra_modules)
        readers = set(self.mode_readers)
        again = id(m) in self._called
        states = [snapshot(one) for one in m.modules()] if again else []
        self._called.add(id(m))

        def undo() -> None:
            for node in reversed(list(self.graph.nodes)):
                if node is last:
                    break
                self.graph.erase_node(node)
            self._attributes = {n: p for n, p in self._attributes.items() if not p.node._erased}
            del self.guards[guards:], self.opaque[opaque:]
            for name in list(self.extra_modules)[modules:]:
                del self.extra_modules[name]
            self.mode_readers = readers
            for restore in states:
                restore()
            for one in m.modules() if not again else ():
                if id(one) in self._before:
                    self._before[id(one)]()
                    one.__dict__["training"] = False

        return undo

    def _dropout(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Dropout switched by ``self.training`` becomes a module; with a constant switch it stays a function."""
        bound = inspect.signature(target).bind(*args, **kwargs)
        bound.apply_defaults()
        values = bound.arguments
        if type(values["training"]) is not TrainingFlag:
            return None
        module = DROPOUTS[target](values["p"], values["inplace"])
        return self.create_proxy("call_module", self._add_module("dropout", module), (values["input"],), {})

    def _add_module(self, kind: str, module: nn.Module) -> str:
        prefix = f"{self._stack[-1]}." if self._stack[-1] else ""
        owner = self.root.get_submodule(self._stack[-1])
        index = 0
        while hasattr(owner, f"{kind}_{index}") or f"{prefix}{kind}_{index}" in self.extra_modules:
            index += 1
        self.extra_modules[f"{prefix}{kind}_{index}"] = module
        return f"{prefix}{kind}_{index}"


def _attention(args: Any, kwargs: Any) -> tuple[Any, Any, nn.Module | None]:
    """Attention with a dropout that is not nil becomes a module: models switch it by train and eval mode."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    options = {**dict(zip(names, args)), **kwargs}
    p = options.get("dropout_p", 0.0)
    if isinstance(p, (int, float)) and p == 0:
        return args, kwargs, None
    del options["dropout_p"]
    first = tuple(options.pop(name) for name in names[:3])
    return first, options, AttentionDropout(float(p))


def _attribute(root: nn.Module, name: str) -> Any:
    path, _, leaf = name.rpartition(".")
    module = root.get_submodule(path)
    return module._parameters[leaf] if leaf in module._parameters else module._buffers[leaf]
