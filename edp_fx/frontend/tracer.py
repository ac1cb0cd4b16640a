"""A symbolic tracer that keeps modules, follows shapes as graph nodes and works on example values."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, jit, nn
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import CheckpointFunction

from edp_fx.frontend.arguments import lower
from edp_fx.frontend.constants import real_value
from edp_fx.frontend.functions import COMPOSITE, SWITCHED, attention, by_mode
from edp_fx.frontend.guards import Guard, Taking, place
from edp_fx.frontend.interception import RecordCalls, wrappers
from edp_fx.frontend.layers import CustomFunction
from edp_fx.frontend.location import described
from edp_fx.frontend.propagate import evaluate
from edp_fx.frontend.proxies import TensorProxy, TrainingFlag, Untraceable, ValueProxy
from edp_fx.frontend.random_run import own_buffers
from edp_fx.frontend.running import attribute, run_node, submodule
from edp_fx.frontend.shadow import Shadows
from edp_fx.frontend.shapes import ShapeMode, shapes_only
from edp_fx.inputs import COMPUTE_LAYERS
from edp_fx.pairs import Pair
from edp_fx.refusal import Refusal

_LEAF_TYPES = (
    *COMPUTE_LAYERS,
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
    jit.ScriptModule,
)


class ReadsTraining(BaseException):
    """The module being traced reads ``self.training`` and holds no convolution or linear layer: a leaf."""


class ModuleTracer:
    """Traces a module on example inputs without data.

    Leaves are torch.nn's own modules without children, subclasses of convolution, linear and norm layers, scripted
    modules, what an earlier trace made, and modules that read ``self.training`` without owning a layer. A submodule
    that cannot be traced through becomes an opaque leaf, with the reason in ``opaque``. The module itself is not
    touched: its stand-ins run.

    Args:
        inputs: example inputs, one a positional argument of ``forward``; the others keep their defaults.
        training: what ``self.training`` reads as.
        force_opaque: paths of modules to keep as leaves, with the reason.
        mode: the shape run of an earlier trace, whose results it remembers.
    """

    graph: fx.Graph
    model: nn.Module
    shadows: Shadows

    def __init__(
        self,
        inputs: tuple[Tensor, ...],
        *,
        training: bool = True,
        force_opaque: dict[str, str] | None = None,
        mode: ShapeMode | None = None,
    ) -> None:
        self.inputs, self.training = inputs, training
        self.force_opaque = force_opaque or {}
        self.mode = mode or ShapeMode(inputs[0].device)
        self.takings: list[Taking] = []
        self.opaque: list[Refusal] = []
        self.mode_readers: set[str] = set()
        self.extra_modules: dict[str, nn.Module] = {}
        self.constant_values: dict[str, Tensor] = {}
        self.evaluating = False
        self.grad_enabled = True
        self._attributes: dict[str, ValueProxy] = {}
        self._names: dict[int, str] = {}
        self._stack: list[str] = []
        self._called: set[int] = set()

    @property
    def guards(self) -> list[Guard]:
        """What was taken from the example."""
        return [taking.guard for taking in self.takings]

    # Entry -----------------------------------------------------------------------------------------------------

    def trace(self, model: nn.Module) -> fx.Graph:
        """The graph of ``model``."""
        self.model, self.graph = model, fx.Graph(tracer_cls=fx.Tracer)
        self._names = {id(p): n for n, p in model.named_parameters()} | {id(b): n for n, b in model.named_buffers()}
        self.shadows = Shadows(model, self)
        root = self.shadows.root
        root.__dict__["training"] = TrainingFlag(self, "")
        self._stack.append("")
        try:
            with wrappers, RecordCalls(self), torch.enable_grad():
                self.graph.output(lower(root._call_impl(*self._placeholders()), self))
        finally:
            self._stack.pop()
        self._write_back()
        return self.graph

    def _placeholders(self) -> list[ValueProxy]:
        """Placeholders for the example inputs; further arguments of ``forward`` are left at their defaults."""
        names: list[str] = []
        for name, parameter in inspect.signature(self.shadows.root.forward).parameters.items():
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                names += [f"{name}_{i}" for i in range(len(names), len(self.inputs))]
            elif parameter.kind in (
                inspect.Parameter.POSITIONAL_ONLY,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
            ):
                names.append(name)
        names += [f"input_{i}" for i in range(len(names), len(self.inputs))]
        return [self._input(name, example) for name, example in zip(names, self.inputs)]

    def _input(self, name: str, example: Tensor) -> ValueProxy:
        node = self.graph.create_node("placeholder", name)
        node.meta["val"] = self._example(example)
        return self.proxy(node)

    def _write_back(self) -> None:
        """Buffers that the forward assigned anew are written at the end of the graph."""
        buffers = dict(self.model.named_buffers(remove_duplicate=False))
        output = next(iter(reversed(self.graph.nodes)))
        for path, module in self.shadows.root.named_modules():
            for name, value in module._buffers.items():
                target = f"{path}.{name}" if path else name
                if type(value) is not TensorProxy or target not in buffers:
                    continue
                example = self.mode.meta(buffers[target])
                if value.value.shape != example.shape:
                    continue  # a cache of another size
                with self.graph.inserting_before(output):
                    buffer = self.graph.create_node("get_attr", target)
                    written = self.graph.create_node("call_method", "copy_", (buffer, value.node))
                buffer.meta["val"] = written.meta["val"] = example

    # Values ----------------------------------------------------------------------------------------------------

    def proxy(self, node: fx.Node) -> ValueProxy:
        """Wrap a node that has its value."""
        return (TensorProxy if isinstance(node.meta["val"], Tensor) else ValueProxy)(node, self)

    def _example(self, tensor: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            return self.mode.meta(tensor)

    def attribute(self, tensor: Tensor) -> Any:
        """A parameter or buffer that the forward reads is a node of the graph."""
        if self.evaluating or not self._stack or id(tensor) not in self._names:
            return tensor
        return self._get_attr(self._names[id(tensor)], tensor)

    def _get_attr(self, name: str, tensor: Tensor) -> ValueProxy:
        if name not in self._attributes:
            node = self.graph.create_node("get_attr", name)
            node.meta["val"] = self._example(tensor)
            self._attributes[name] = self.proxy(node)
        return self._attributes[name]

    def _tensor(self, name: str) -> Tensor:
        known = self.constant_values.get(name)
        return attribute(self.model, name) if known is None else known

    def constant(self, tensor: Tensor) -> fx.Node:
        """The node of a tensor that is no proxy: of the model's own, or made by its forward from nothing."""
        if id(tensor) in self._names:
            return self._get_attr(self._names[id(tensor)], tensor).node
        if self._is_lost(tensor):
            return self.found_again(tensor).node
        name = next((name for name, known in self.constant_values.items() if known is tensor), None)
        if name is None:
            name = self.shadows.plain_tensors.get(id(tensor)) or f"_tensor_constant{len(self.constant_values)}"
            self.constant_values[name] = tensor
        return self._get_attr(name, tensor).node

    def _is_lost(self, tensor: Tensor) -> bool:
        """Whether C++ has made a tensor of a proxy: no tensor of the model's own is without data."""
        with torch._C.DisableTorchFunction():
            return tensor.is_meta and self.mode.device.type != "meta" and id(tensor) not in self._names

    def found_again(self, tensor: Tensor) -> Any:
        """A tensor that C++ has made of a proxy, as torch.autograd.Variable does: the same values without gradient."""
        if not self._is_lost(tensor):
            return tensor

        def place(one: Tensor) -> Any:
            return (one.untyped_storage()._cdata, one.storage_offset(), one.shape, one.stride(), one.dtype)

        with torch._C.DisableTorchFunction():
            for node in reversed(self.graph.nodes):
                value = node.meta.get("val")
                if isinstance(value, Tensor) and place(value) == place(tensor):
                    return self._detached(node)
        raise Untraceable("a tensor was computed from the input by code that torch's function overrides do not see")

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        """Record a node and compute its value."""
        if not self._stack:
            raise Untraceable("a value of a graph that is already traced is used, which the forward had kept")
        if kind == "call_function":
            if target is torch._assert:
                bool(args[0])
                return None
            if target in SWITCHED and (made := by_mode(target, args, kwargs)) is not None:
                name = self._add_module(*made[:2])
                return self.create_proxy("call_module", name, made[2], {})
            if target is F.scaled_dot_product_attention:
                args, kwargs, module = attention(args, kwargs)
                if module is not None:
                    kind, target = "call_module", self._add_module("attention", module)
        elif kind == "call_method" and target in ("item", "tolist"):
            return self.take(args[0], target, lambda value: getattr(value, target)())
        node = self.graph.create_node(kind, target, lower(tuple(args), self), lower(dict(kwargs), self))
        try:
            value = node.meta["val"] = self.evaluate(node)
        except Exception:
            self.graph.erase_node(node)
            numbers = [self._as_number(arg) for arg in args]
            if all(map(lambda one, other: one is other, numbers, args)):
                raise
            return self.create_proxy(kind, target, numbers, kwargs)
        if value is None:
            return None
        if not torch.is_grad_enabled() and isinstance(value, Tensor) and _is_real(value):
            # A forward that computes this under no_grad: say so in the graph, whose run has no such context.
            return self._detached(node)
        return self.proxy(node)

    def _detached(self, node: fx.Node) -> ValueProxy:
        detached = self.graph.create_node("call_method", "detach", (node,))
        detached.meta["val"] = node.meta["val"]
        return self.proxy(detached)

    def _as_number(self, value: Any) -> Any:
        """A tensor of one number that is none of the input's as a plain number, which some functions insist on."""
        if type(value) is TensorProxy and value.value.ndim == 0:
            return self.take(value, "item", Tensor.item)
        return value

    def evaluate(self, node: fx.Node) -> Any:
        """The value of a node from those of its arguments."""
        was, self.evaluating = self.evaluating, True
        try:
            if node.op == "call_module" and node.target in self.extra_modules:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
                with shapes_only(self.mode):
                    return self.extra_modules[str(node.target)].eval()(*args, **kwargs)
            if node.op == "get_attr":
                return self._example(self._tensor(str(node.target)))
            if node.target is getattr and node.args[1] == "device":
                return self.mode.device
            return evaluate(self.shadows.root, node, self.mode)
        finally:
            self.evaluating = was

    def run(self, *inputs: Tensor, training: bool = False) -> Any:
        """What the model itself computes, on stand-ins: to compare the graph with."""
        was, self.evaluating = self.evaluating, True
        root = self.shadows.root
        for shadow in root.modules():
            self.shadows.reset(shadow, training=training)
        try:
            with own_buffers(root):
                return root._call_impl(*inputs)
        finally:
            self.evaluating = was

    def take(self, proxy: ValueProxy, kind: str, convert: Callable[[Any], Any]) -> Any:
        """Give Python the value it insists on, and note that the graph now depends on it.

        Raises:
            Untraceable: the value is the model's input's.
        """
        value = proxy.value
        if isinstance(value, Tensor) and kind != "len":
            value = self._real_value(proxy.node)
        with torch._C.DisableTorchFunction():
            taken = convert(value)
        guard = Guard(proxy.node.name, kind, taken, self._stack[-1] if self._stack else "")
        self.takings.append(Taking(guard, proxy.node, convert, place()))
        return taken

    def _real_value(self, node: fx.Node) -> Any:
        def run(one: fx.Node, value_of: Callable[[fx.Node], Any]) -> Any:
            if one.op == "get_attr":
                return self._tensor(str(one.target))
            with torch._C.DisableTorchFunction():
                return run_node(self.shadows.root, one, value_of)

        was, self.evaluating = self.evaluating, True
        try:
            return real_value(node, run)
        finally:
            self.evaluating = was

    def record_call(self, func: Any, args: Any, kwargs: Any, proxies: list[ValueProxy]) -> Any:
        """A torch call that has proxies among its arguments."""
        self._forget_asking(proxies)
        if func in COMPOSITE and any(type(proxy) is TensorProxy for proxy in proxies):
            return COMPOSITE[func](*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return getattr(args[0], func.__self__.__name__)
        if name == "__set__":
            raise Untraceable(f"the attribute {func.__self__.__name__!r} of a tensor is assigned")
        if torch.overrides.is_tensor_method_or_property(func):
            return self.create_proxy("call_method", name, args, kwargs)
        return self.create_proxy("call_function", func, args, kwargs)

    def _forget_asking(self, proxies: list[ValueProxy]) -> None:
        """Drop the guards of sizes that C++'s argument parser, not the model, has just asked for."""
        if self.takings and self.takings[-1].guard.kind == "index":
            here, nodes = place(), {proxy.node for proxy in proxies}
            while self.takings and self.takings[-1].place == here and self.takings[-1].node in nodes:
                self.takings.pop()

    def apply_function(self, function: type[torch.autograd.Function], args: tuple[Any, ...]) -> Any:
        """An autograd function that is applied is a module; gradient checkpointing is what it checkpoints."""
        enabled = self.grad_enabled
        with torch.set_grad_enabled(enabled):  # C++ has switched gradients off for the function's forward
            if function is CheckpointFunction:  # new proxies: C++ would replace an output that is an input
                result = tree_map_only(TensorProxy, lambda one: self.proxy(one.node), args[0](*args[2:]))
            else:
                name = self._add_module("function", CustomFunction(function))
                result = self.create_proxy("call_module", name, args, {})
            if isinstance(result, tuple):  # C++ wants one
                result = tuple(result)
        self.grad_enabled = enabled
        return result

    # Modules ---------------------------------------------------------------------------------------------------

    def is_leaf(self, path: str) -> bool:
        """Whether a module is a single node, whatever its forward does."""
        module = submodule(self.model, path)
        if isinstance(module, _LEAF_TYPES) or path in self.force_opaque:
            return True
        home = type(module).__module__
        return home == CustomFunction.__module__ or (home.startswith("torch.nn.") and not module._modules)

    def call_module(self, shadow: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """A node for a leaf, the module's own nodes otherwise; what cannot be traced is rolled back to a leaf."""
        forward: Callable[..., Any] = shadow._call_impl
        if self.evaluating or not self._stack:
            return forward(*args, **kwargs)
        path = self.shadows.path(shadow)
        if path in self.force_opaque:
            self.opaque.append(Refusal(path, self.force_opaque[path]))
        if self.is_leaf(path):
            return self.create_proxy("call_module", path, args, kwargs)
        if isinstance(shadow, Pair):  # shown as its two layers, whatever its fused forward computes
            forward = functools.partial(nn.Sequential.forward, shadow)
        undo = self._checkpoint(shadow)
        was = shadow.__dict__["training"]
        shadow.__dict__["training"] = TrainingFlag(self, path)
        self._stack.append(path)
        try:
            return forward(*args, **kwargs)
        except ReadsTraining as stop:
            if stop.args != (path,):
                raise
            reason = None
        except Exception as error:
            reason = described(error, Untraceable)
        finally:
            self._stack.pop()
            shadow.__dict__["training"] = was
        undo()
        result = self.create_proxy("call_module", path, args, kwargs)
        if reason is not None:
            self.opaque.append(Refusal(path, reason))
        return result

    def read_training(self, path: str) -> bool:
        """``self.training`` was asked for by the module at ``path``."""
        if path and not any(isinstance(one, COMPUTE_LAYERS) for one in submodule(self.model, path).modules()):
            raise ReadsTraining(path)
        self.mode_readers.add(path)
        return self.training

    def _checkpoint(self, shadow: nn.Module) -> Callable[[], None]:
        """A way back to where a module was called.

        The first call of a module finds it as it was before the trace; only for a later one its state is copied.
        """
        last = next(iter(reversed(self.graph.nodes)), None)
        takings, opaque, modules = len(self.takings), len(self.opaque), len(self.extra_modules)
        constants = len(self.constant_values)
        readers, enabled = set(self.mode_readers), self.grad_enabled
        again = id(shadow) in self._called
        states = [self.shadows.keep(one) for one in shadow.modules()] if again else []
        self._called.add(id(shadow))

        def undo() -> None:
            for node in reversed(list(self.graph.nodes)):
                if node is last:
                    break
                self.graph.erase_node(node)
            self._attributes = {n: p for n, p in self._attributes.items() if not p.node._erased}
            del self.takings[takings:], self.opaque[opaque:]
            for table, count in ((self.extra_modules, modules), (self.constant_values, constants)):
                for name in list(table)[count:]:
                    del table[name]
            self.mode_readers, self.grad_enabled = readers, enabled
            for restore in states:
                restore()
            for one in shadow.modules() if not again else ():
                self.shadows.reset(one)

        return undo

    def _add_module(self, kind: str, module: nn.Module) -> str:
        prefix = f"{self._stack[-1]}." if self._stack[-1] else ""
        owner = submodule(self.model, self._stack[-1])
        index = 0
        while hasattr(owner, f"{kind}_{index}") or f"{prefix}{kind}_{index}" in self.extra_modules:
            index += 1
        self.extra_modules[f"{prefix}{kind}_{index}"] = module
        return f"{prefix}{kind}_{index}"


def _is_real(tensor: Tensor) -> bool:
    with torch._C.DisableTorchFunction():
        return tensor.is_floating_point()
