"""Run a graph once on meta tensors while every tensor carries channel labels.

The graph runs below its modules, at ATen level, so a leaf module, a custom layer and functional code all reduce
to the same few dozen operations. See :mod:`edp_fx.channels.rules` for what each does to labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from edp_fx.channels.atoms import Grid, Ledger, Where
from edp_fx.channels.labels import Factor, Labels, drop_trivial, repeats_along, tensors, vector
from edp_fx.channels.rules import apply_rule, operation
from edp_fx.channels.rules.registry import Operation
from edp_fx.channels.weights import Weights, take_weights_away, without_data
from edp_fx.errors import AnalysisError
from edp_fx.frontend.random_run import run_on_random
from edp_fx.frontend.running import GraphRunner, submodule
from edp_fx.frontend.shapes import call_key, empty_again
from edp_fx.frontend.shortcuts import META, OPERATIONS, like, pointwise_form
from edp_fx.inputs import eval_mode
from edp_fx.leaves import map_tensors, tensors_of


class Sweep(TorchDispatchMode):
    """The abstract interpretation: holds the ledger and the labels of every live tensor.

    ``heads`` is ``"dims"`` (an attention head keeps its place and loses dimensions, the same in every head) or
    ``"whole"`` (heads go as a whole).
    """

    def __init__(self, heads: str) -> None:
        super().__init__()
        self.heads = heads
        self.ledger = Ledger()
        self.where = Where("<start>", "<start>")
        self.parameters: dict[str, dict[int, np.ndarray]] = {}
        self.outputs: dict[str, list[tuple[tuple[int, ...], Labels]]] = {}  # by graph node
        self.scalars: dict[str, Any] = {}
        self.not_run: dict[str, str] = {}  # graph nodes that do not run without data, and why
        self.dead_results: dict[Any, bool] = {}  # of pointwise operations, see their rule
        self._labels: dict[int, tuple[Tensor, Labels]] = {}  # by id, which the tensor beside keeps its own
        self._results: dict[Any, Any] = {}

    # -- labels of tensors ---------------------------------------------------------------------------------

    def labels(self, tensor: Tensor) -> Labels:
        """The factors of ``tensor``; empty for inputs and constants."""
        found = self._labels.get(id(tensor))
        return found[1] if found is not None else ()

    def set(self, tensor: Tensor, factors: Any) -> None:
        """Give ``tensor`` its factors; jointly labelled ones are remembered as boxes to keep rectangular.

        Two factors on one axis (two labelled axes were merged) cannot be told apart later: they are frozen.
        """
        factors = list(factors)
        for factor in factors:
            if not factor.axes:
                self.freeze(factor, "an index alone on its axis")
        kept = self._disjoint(drop_trivial(factors))
        self._labels[id(tensor)] = (tensor, kept)
        for factor in kept:
            if len(factor.axes) > 1:
                self.ledger.grids.append(Grid(self.where, factor.atoms))

    def _disjoint(self, factors: Labels) -> Labels:
        if len({axis for factor in factors for axis in factor.axes}) == sum(len(factor.axes) for factor in factors):
            return factors
        kept: list[Factor] = []
        for k, factor in enumerate(factors):
            others = [one for j, one in enumerate(factors) if j != k and set(one.axes) & set(factor.axes)]
            if all(one.virtual for one in others) and not (factor.virtual and others):
                kept.append(factor)
            else:
                self.freeze(factor, "merged with another labelled axis")
        return tuple(kept)

    def birth(self, name: str, meta: Tensor, axes: int) -> None:
        """Fresh atoms for the first ``axes`` axes of a parameter or buffer, none for integers: they are indices."""
        if not meta.is_floating_point():
            return
        born = {axis: self.ledger.born(size) for axis, size in enumerate(meta.shape[:axes]) if size > 1}
        self.parameters[name] = born
        self._labels[id(meta)] = (
            meta,
            tuple(Factor(vector(atoms, axis, meta.ndim)) for axis, atoms in born.items()),
        )

    def forget_tensors(self) -> None:
        """After the run: what was learnt is by node and by parameter."""
        self._labels.clear()
        self._results.clear()
        self.dead_results.clear()

    # -- what rules do with labels -------------------------------------------------------------------------

    def tie(self, left: np.ndarray, right: np.ndarray) -> None:
        """Make two broadcastable label arrays equal."""
        self.ledger.tie(self.where, left, right)

    def freeze(self, factor: Factor | np.ndarray, reason: str) -> None:
        """Nothing that carries these labels can be removed."""
        self.ledger.freeze(self.where, factor.atoms if isinstance(factor, Factor) else factor, reason)

    def collapse(self, factor: Factor, axes: Any) -> Factor:
        """Tie the labels along ``axes``, so that the factor no longer depends on them.

        A factor that depends on nothing else is frozen: it would be all or nothing.
        """
        axes = [axis for axis in axes if factor.atoms.shape[axis] > 1]
        if not axes:
            return factor
        index = tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(factor.atoms.ndim))
        reference = factor.atoms[index]
        if reference.size == 1:
            self.freeze(factor, "an axis of fixed size")
        else:
            self.tie(factor.atoms, reference)
        return factor.with_atoms(reference)

    def split_joint(self, factor: Factor, inner: Any) -> Factor:
        """Make a joint factor depend on ``inner`` axes only, or on none of them.

        With ``heads="dims"`` the inner axes (contracted, normalised, reduced) stay free; with ``"whole"`` the outer
        ones do, and they do too where an inner axis was merged with an unlabelled one (space after a pixel shuffle).
        """
        inner_axes = [axis for axis in factor.axes if axis in inner]
        outer_axes = [axis for axis in factor.axes if axis not in inner]
        if not inner_axes or not outer_axes:
            return factor
        keep_outer = self.heads == "whole" or any(repeats_along(factor.atoms, axis) for axis in inner_axes)
        return self.collapse(factor, inner_axes if keep_outer else outer_axes)

    # -- running -------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if "device" in kwargs:
            kwargs = {**kwargs, "device": META}
        operands = tensors(*args, *kwargs.values())
        if any(one.is_meta for one in operands) and not all(one.is_meta for one in operands):
            args, kwargs = tree_map_only(Tensor, lambda one: one if one.is_meta else like(one), (args, kwargs))
        known = operation(func)
        out = self._shapes(func, known, args, kwargs)
        self.where = Where(self.where.node, known.name)
        apply_rule(self, func, args, kwargs, out)
        return out

    def _shapes(self, func: Any, known: Operation, args: Any, kwargs: Any) -> Any:
        """The result without data. Networks repeat themselves, and some operations are slow even without data."""
        if known.mutable:
            return args[0] if known.pointwise and func._schema.name.endswith("_") else func(*args, **kwargs)
        shortcut = OPERATIONS.get(func.overloadpacket)
        if shortcut is not None:
            return shortcut(*args, **kwargs)
        shape = None
        if known.pointwise and "memory_format" not in kwargs:
            shape = pointwise_form(tensors(*args, *kwargs.values()))
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
            first = (str(error) or type(error).__name__).split("\n")[0]
            try:
                result = self._run_with_data(node)
            except Exception:
                raise AnalysisError(
                    f"the graph does not run at node {node.name!r} ({node.target}): {first}. "
                    "Check the shape and device of the example inputs"
                ) from error
            self.sweep.not_run[node.name] = f"it does not run without data ({first})"
        if isinstance(result, (int, float)):
            self.sweep.scalars[node.name] = result
        self.sweep.outputs[node.name] = [(tuple(leaf.shape), self.sweep.labels(leaf)) for leaf in tensors_of(result)]
        return result

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
        with torch.no_grad(), sweep:
            result = _Runner(gm, sweep, weights).run(*inputs)
        sweep.where = Where("output", "output")
        for leaf in tensors_of(result):
            for factor in sweep.labels(leaf):
                sweep.freeze(factor, "an output of the model")
    sweep.forget_tensors()
    return sweep
