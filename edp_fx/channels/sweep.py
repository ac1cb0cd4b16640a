"""Run a graph once on meta tensors while every tensor carries channel labels.

The graph runs below its modules, at ATen level, so a leaf module, a custom layer and functional code all reduce
to the same few dozen operations. See :mod:`edp_fx.channels.rules` for what each does to labels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from edp_fx.channels.atoms import Grid, Ledger, Where
from edp_fx.channels.labels import Factor, Labels, drop_trivial, repeats_along, vector
from edp_fx.errors import AnalysisError
from edp_fx.frontend.shapes import call_key, empty_again


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
        self._labels: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._alive: list[Tensor] = []
        self._results: dict[Any, Any] = {}

    # -- labels of tensors ---------------------------------------------------------------------------------

    def labels(self, tensor: Tensor) -> Labels:
        """The factors of ``tensor``; empty for inputs and constants."""
        return self._labels.get(tensor, ())

    def set(self, tensor: Tensor, factors: Any) -> None:
        """Give ``tensor`` its factors; jointly labelled ones are remembered as boxes to keep rectangular.

        Two factors on one axis (two labelled axes were merged) cannot be told apart later: they are frozen.
        """
        factors = list(factors)
        for factor in factors:
            if not factor.axes:
                self.freeze(factor, "an index alone on its axis")
        kept = self._disjoint(drop_trivial(factors))
        self._labels[tensor] = kept
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

    def birth(self, name: str, meta: Tensor) -> None:
        """Fresh atoms for every axis of a parameter or buffer. Integers are indices, not channels: none for them."""
        if not meta.is_floating_point():
            return
        axes = {axis: self.ledger.born(size) for axis, size in enumerate(meta.shape) if size > 1}
        self.parameters[name] = axes
        self._labels[meta] = tuple(Factor(vector(atoms, axis, meta.ndim)) for axis, atoms in axes.items())
        self._alive.append(meta)

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
        from edp_fx.channels.rules import apply_rule

        kwargs = kwargs or {}
        out = self._shapes(func, args, kwargs)
        self.where = Where(self.where.node, str(func))
        apply_rule(self, func, args, kwargs, out)
        return out

    def _shapes(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result without data. Networks repeat themselves, and some operations are slow even without data."""
        if func._schema.is_mutable:
            return func(*args, **kwargs)
        try:
            key = (func, call_key(args), *((name, call_key(value)) for name, value in kwargs.items()))
            known = self._results.get(key)
        except TypeError:
            return func(*args, **kwargs)
        if known is None:
            known = self._results[key] = func(*args, **kwargs)
        return empty_again(known)


class _Runner(fx.Interpreter):
    """Tells the sweep which graph node is running, and keeps the labels of its outputs."""

    def __init__(self, gm: fx.GraphModule, sweep: Sweep) -> None:
        super().__init__(gm, garbage_collect_values=True)
        self.sweep = sweep
        self.extra_traceback = False

    def run_node(self, node: fx.Node) -> Any:
        self.sweep.where = Where(node.name, node.op)
        try:
            result = super().run_node(node)
        except AnalysisError:
            raise
        except Exception as error:
            first = (str(error) or type(error).__name__).split("\n")[0]
            raise AnalysisError(
                f"the graph does not run at node {node.name!r} ({node.target}): {first}. "
                "Check the shape and device of the example inputs"
            ) from error
        leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if isinstance(result, (int, float)):
            self.sweep.scalars[node.name] = result
        self.sweep.outputs[node.name] = [(tuple(leaf.shape), self.sweep.labels(leaf)) for leaf in leaves]
        return result


def to_meta(gm: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    """A structural copy of ``gm`` on the meta device, no weight copied.

    Returns the copy and its meta tensors by state name. A tensor under several names has the first.
    """
    memo: dict[int, Any] = {}
    named: dict[str, Tensor] = {}

    def add(real: Tensor, make: Callable[[Tensor], Tensor], name: str | None) -> None:
        if id(real) in memo:
            return
        memo[id(real)] = make(real)
        if name is not None:
            named[name] = memo[id(real)]

    for name, parameter in gm.named_parameters():
        add(parameter, lambda p: nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False), name)
    for name, buffer in gm.named_buffers():
        add(buffer, lambda b: torch.empty_like(b, device="meta"), name)
    for module in gm.modules():  # plain tensor attributes, also inside lists and dicts
        for value in tree_flatten({k: v for k, v in vars(module).items() if not k.startswith("_")})[0]:
            if isinstance(value, Tensor):
                add(value, lambda t: torch.empty_like(t, device="meta"), None)
    duplicate: nn.Module
    if isinstance(gm, fx.GraphModule):  # example values of nodes are not part of the copy
        metas = {node: node.meta for node in gm.graph.nodes}
        try:
            for node in metas:
                node.meta = {}
            duplicate = copy.deepcopy(gm, memo)
        finally:
            for node, meta in metas.items():
                node.meta = meta
    else:
        duplicate = copy.deepcopy(gm, memo)
    return duplicate, named


def run_sweep(gm: fx.GraphModule, example_inputs: tuple[Any, ...], heads: str) -> Sweep:
    """Run ``gm`` in eval mode on meta tensors shaped like ``example_inputs`` and return what was learnt.

    Raises :class:`AnalysisError` naming the node where the graph does not run on such inputs.
    """
    duplicate, named = to_meta(gm)
    duplicate.eval()
    sweep = Sweep(heads)
    for name, meta in named.items():
        sweep.birth(name, meta)
    inputs = tree_map(
        lambda x: torch.empty_like(x, device="meta") if isinstance(x, Tensor) else x, tuple(example_inputs)
    )
    with torch.no_grad(), torch.device("meta"), sweep:
        result = _Runner(duplicate, sweep).run(*inputs)  # type: ignore[arg-type]
        sweep.where = Where("output", "output")
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                for factor in sweep.labels(leaf):
                    sweep.freeze(factor, "an output of the model")
    return sweep
