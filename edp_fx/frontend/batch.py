"""Is the batch size free? Where Python code took a number from the example, it may have taken the batch size."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, fx

from edp_fx.frontend.shapes import shapes_only
from edp_fx.frontend.tracer import ModuleTracer
from edp_fx.leaves import tensors_of


def _shapes(value: Any) -> list[torch.Size]:
    return [t.shape for t in tensors_of(value)]


def _expected(tracer: ModuleTracer, inputs: list[Tensor]) -> list[torch.Size] | None:
    """The shapes that the model itself gives, in the mode that was traced if it runs so: a head may give more in eval
    mode. None where it does not run."""
    for training in (tracer.training, False):
        with contextlib.suppress(Exception), shapes_only(tracer.mode):
            return _shapes(tracer.run(*inputs, training=training))
    return None


def fixes_batch_size(inputs: tuple[Tensor, ...], tracer: ModuleTracer, graph: fx.Graph) -> bool:
    """Whether the graph fails, or gives other shapes than the model, at one more sample a batch.

    False as well where the model itself does not run at another batch size. Nothing is computed but shapes.
    """
    if not tracer.guards or any(x.ndim == 0 for x in inputs):
        return False
    wider = [tracer.mode.meta(x).new_empty((x.shape[0] + 1, *x.shape[1:])) for x in inputs]
    expected = _expected(tracer, wider)
    if expected is None:
        return False
    before = {node: node.meta.get("val") for node in graph.nodes}
    try:
        for node, value in zip((n for n in graph.nodes if n.op == "placeholder"), wider):
            node.meta["val"] = value
        for node in graph.nodes:
            if node.op == "output":
                return _shapes(fx.node.map_arg(node.args[0], lambda n: n.meta["val"])) != expected
            if node.op != "placeholder":
                node.meta["val"] = tracer.evaluate(node)
    except Exception:
        return True
    finally:
        for node, value in before.items():
            node.meta["val"] = value
    return False
