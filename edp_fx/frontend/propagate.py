"""Shapes and dtypes of every node of a graph."""

from __future__ import annotations

import contextlib
from typing import Any

from torch import Tensor, fx, nn

from edp_fx.errors import PassError, typed_line
from edp_fx.frontend.random_run import run_on_random
from edp_fx.frontend.running import run_node, submodule
from edp_fx.frontend.shapes import ShapeMode, shapes_only
from edp_fx.inputs import eval_mode, normalize
from edp_fx.leaves import map_tensors


def _known(node: fx.Node) -> Any:
    return node.meta["val"]


def evaluate(root: nn.Module, node: fx.Node, mode: ShapeMode) -> Any:
    """The value of a node by shapes alone; a module that looks at its input's values is run on random ones."""
    try:
        with shapes_only(mode):
            return run_node(root, node, _known)
    except Exception:
        if node.op != "call_module":
            raise
        module = submodule(root, str(node.target))
        if not module._modules or any(p.is_meta for p in module.parameters()):
            raise
        value = None
        with contextlib.suppress(Exception):
            value = run_on_random(root, node, _known, mode.device)
        if value is None:
            raise
        return map_tensors(mode.meta, value)


def propagate(gm: fx.GraphModule, example_inputs: Any) -> None:
    """Fill ``node.meta["val"]`` of every node with fake tensors and plain values.

    Layers are run in eval mode, so a batch of one passes batch norm and no statistics move; ``gm`` is unchanged
    but for the metadata.

    Args:
        gm: the graph.
        example_inputs: a tensor or a tuple of tensors (real, meta or fake), one a placeholder.

    Raises:
        PassError: naming the node whose operation does not fit its arguments' shapes.
    """
    inputs = normalize(example_inputs, gm)
    given = iter(inputs)
    mode = ShapeMode(inputs[0].device)
    nodes = list(gm.graph.nodes)
    with eval_mode(gm):
        for node in nodes:
            if node.op == "placeholder":
                example = next(given, None)
                if example is None and not node.args:
                    raise PassError(f"propagate: no example input for placeholder {node.name!r}")
                node.meta["val"] = node.args[0] if example is None else mode.meta(example)
                continue
            try:
                value = evaluate(gm, node, mode)
            except Exception as error:
                raise PassError(
                    f"propagate: node {node.name!r} ({node.op} {node.target}) fails on the shapes of its "
                    f"arguments: {typed_line(error)}"
                ) from error
            node.meta["val"] = mode.meta(value) if isinstance(value, Tensor) else value
    for node in nodes:
        node.meta["val"] = mode.fake(node.meta["val"])
