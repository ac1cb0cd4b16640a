"""Run a graph once on meta tensors while every tensor carries channel labels.

The graph runs below its modules, at ATen level, so a leaf module, a custom layer and functional code all reduce
to the same few dozen operations. See :mod:`edp_fx.channels.rules` for what each does to labels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from edp_fx.channels.atoms import Where
from edp_fx.channels.labels import tensors
from edp_fx.channels.rules import apply_rule, operation
from edp_fx.channels.rules.registry import Operation
from edp_fx.channels.sweep import Sweep
from edp_fx.channels.weights import Weights, take_weights_away, without_data
from edp_fx.errors import AnalysisError, one_line
from edp_fx.frontend.random_run import run_on_random
from edp_fx.frontend.running import GraphRunner, submodule
from edp_fx.frontend.shapes import call_key, empty_again
from edp_fx.frontend.shortcuts import META, OPERATIONS, like, pointwise_form
from edp_fx.inputs import eval_mode
from edp_fx.leaves import map_tensors, tensors_of


class Interpreter(TorchDispatchMode):
    """Gives every operation its result without data, and its rule the operands and the result."""

    def __init__(self, sweep: Sweep) -> None:
        super().__init__()
        self.sweep = sweep
        self._results: dict[Any, Any] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No compiler runs beneath it, so that torch needs not keep one away at every operation."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if "device" in kwargs:
            kwargs = {**kwargs, "device": META}
        operands = tensors(*args, *kwargs.values())
        if len({one.is_meta for one in operands}) == 2:
            args, kwargs = tree_map_only(Tensor, lambda one: one if one.is_meta else like(one), (args, kwargs))
            operands = tensors(*args, *kwargs.values())
        known = operation(func)
        out = self._shapes(func, known, args, kwargs, operands)
        results = tensors(*out) if isinstance(out, (list, tuple)) else tensors(out)
        sweep = self.sweep
        sweep.where = Where(sweep.where.node, known.name)
        if known.alias:
            sweep.alias(args[0], results)
        sites = len(sweep.ledger.sites)
        apply_rule(sweep, func, args, kwargs, out, operands, results)
        sweep.ran(known, args, operands, results, range(sites, len(sweep.ledger.sites)))
        return out

    def _shapes(self, func: Any, known: Operation, args: Any, kwargs: Any, operands: list[Tensor]) -> Any:
        """The result without data. Networks repeat themselves, and some operations are slow even without data."""
        if known.mutable:
            return args[0] if known.pointwise and func._schema.name.endswith("_") else func(*args, **kwargs)
        shortcut = OPERATIONS.get(func.overloadpacket)
        if shortcut is not None:
            return shortcut(*args, **kwargs)
        shape = None
        if known.pointwise and "memory_format" not in kwargs:
            shape = pointwise_form(operands)
        key_of = call_key if shape is None else _type_key  # of one shape, only the type is left to find out
        try:
            key = (func, *map(key_of, args), *((name, key_of(value)) for name, value in kwargs.items()))
            result = self._results.get(key)
        except TypeError:
            result, key = None, None
        if result is None:
            if shape is not None:
                args, kwargs = tree_map_only(Tensor, _tiny, (args, kwargs))
            result = func(*args, **kwargs)
            if key is not None:
                self._results[key] = result
        if shape is not None:
            return like(shape, result.dtype)
        return result if key is None else empty_again(result)


def _type_key(value: Any) -> Any:
    """As :func:`call_key`, for operands of which only the type matters."""
    if isinstance(value, Tensor):
        return (value.dtype, value.ndim > 0)
    return call_key(value)


def _tiny(tensor: Tensor) -> Tensor:
    return torch.empty((1,) * min(tensor.ndim, 1), dtype=tensor.dtype, device=META)


class _Runner(GraphRunner):
    """Tells the sweep which graph node is running, and keeps the labels of its outputs."""

    def __init__(self, gm: fx.GraphModule, sweep: Sweep, weights: Weights) -> None:
        super().__init__(gm)
        self.sweep, self.weights = sweep, weights

    def run_node(self, node: fx.Node) -> Any:
        self.sweep.where = Where(node.name, node.op)
        try:
            result = super().run_node(node)
        except AnalysisError:
            raise
        except Exception as error:
            try:
                result = self._run_with_data(node)
            except Exception:
                raise AnalysisError(
                    f"the graph does not run at node {node.name!r} ({node.target}): {one_line(error)}. "
                    "Check the shape and device of the example inputs"
                ) from error
            self.sweep.not_run[node.name] = f"it does not run without data ({one_line(error)})"
        if node.op == "call_module" and submodule(self.gm, str(node.target))._modules:
            self._other_paths(str(node.target), tensors_of(([self.env[one] for one in node.all_input_nodes], result)))
        numbers = result if isinstance(result, tuple) else (result,)
        if all(isinstance(one, (int, float)) for one in numbers):
            self.sweep.scalars[node.name] = result
        self.sweep.outputs[node.name] = [(tuple(leaf.shape), self.sweep.labels(leaf)) for leaf in tensors_of(result)]
        return result

    def _other_paths(self, target: str, around: list[Tensor]) -> None:
        """An opaque module with layers that do not run in eval mode: on its other path they see the same channels."""
        prefix = f"{target}."
        if not self.sweep.unread(prefix):
            return
        reason = "a layer that runs in train mode only may read it"
        for tensor in around:
            for factor in self.sweep.labels(tensor):
                self.sweep.freeze(factor, reason)
        for name, axes in self.sweep.parameters.items():
            if name.startswith(prefix):
                for atoms in axes.values():
                    self.sweep.freeze(atoms, reason)

    def _run_with_data(self, node: fx.Node) -> Any:
        """What a node gives on random numbers; without labels."""
        module = submodule(self.gm, str(node.target)) if node.op == "call_module" else None
        with self.weights.back_in(module) as device:
            result = run_on_random(self.gm, node, self.env.__getitem__, device)
        return map_tensors(lambda one: torch.empty_like(one, device=META), result)


def run_sweep(gm: fx.GraphModule, example_inputs: tuple[Any, ...], heads: str) -> Sweep:
    """Run ``gm`` in eval mode on meta tensors shaped like ``example_inputs`` and return what was learnt.

    Raises :class:`AnalysisError` naming the node where the graph does not run on such inputs.
    """
    sweep = Sweep(heads)
    inputs = without_data(tuple(example_inputs))
    with eval_mode(gm):
        weights = take_weights_away(gm)
        for name, (meta, axes) in weights.named.items():
            sweep.birth(name, meta, axes)
        for one in tensors_of(inputs):
            sweep.calls.given(one)
        with torch.no_grad(), Interpreter(sweep):
            result = _Runner(gm, sweep, weights).run(*inputs)
        sweep.where = Where("output", "output")
        for leaf in tensors_of(result):
            for factor in sweep.labels(leaf):
                sweep.freeze(factor, "an output of the model")
        sweep.freeze_unread()
    sweep.forget_tensors()
    return sweep
