"""Does a graph traced in train mode hold in eval mode too? Modules that branch on the mode become leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from edp_fx.errors import TraceError
from edp_fx.frontend.layers import AttentionDropout
from edp_fx.frontend.merge import merge
from edp_fx.frontend.tracer import ModuleTracer
from edp_fx.leaves import tensors_of


def _keys(graph: fx.Graph, tracer: ModuleTracer) -> list[Any]:
    """What each node does, with nodes by number, and attention alike with and without dropout."""
    number = {node: i for i, node in enumerate(n for n in graph.nodes if n.op != "get_attr")}

    def plain(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return ("node", number[value]) if value in number else ("attribute", value.target)
        if isinstance(value, (tuple, list)):
            return tuple(plain(v) for v in value)
        if isinstance(value, dict):
            return tuple((k, plain(v)) for k, v in value.items())
        if isinstance(value, slice):
            return ("slice", plain(value.start), plain(value.stop), plain(value.step))
        return value

    keys: list[Any] = []
    for node in number:
        target: Any = node.target
        args, kwargs = node.args, dict(node.kwargs)
        attention = isinstance(tracer.extra_modules.get(str(target)), AttentionDropout)
        if attention or target is F.scaled_dot_product_attention:
            names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
            options = {**dict(zip(names, args)), **kwargs}
            options.pop("dropout_p", None)
            keys.append((F.scaled_dot_product_attention, plain(dict(sorted(options.items())))))
        else:
            keys.append((node.op, target, plain(args), plain(kwargs)))
    return keys


def mode_dependent(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    tracer: ModuleTracer,
    graph: fx.Graph,
    run: Callable[[ModuleTracer, nn.Module], fx.Graph],
) -> dict[str, str]:
    """The modules whose graph differs between train and eval mode, with the reason; empty when one graph holds.

    A graph that differs in a few operations is made to hold in both modes, see :func:`merge`.

    Raises:
        TraceError: the model's own forward returns different things in the two modes.
    """
    other = ModuleTracer(inputs, training=False, force_opaque=tracer.force_opaque, mode=tracer.mode)
    evaluated = run(other, model)
    if _keys(graph, tracer) == _keys(evaluated, other):
        return {}
    if _equal_in_eval(model, inputs, tracer, graph) or merge(tracer, graph, evaluated):
        return {}
    readers = {path for path in tracer.mode_readers | other.mode_readers if path}
    if not readers:
        raise TraceError(
            f"{type(model).__name__}.forward computes different things in train and in eval mode; "
            "build the model without auxiliary outputs, or wrap the part to compress"
        )
    return {path: "its forward takes another path in train mode than in eval mode" for path in readers}


def _equal_in_eval(model: nn.Module, inputs: tuple[Tensor, ...], tracer: ModuleTracer, graph: fx.Graph) -> bool:
    """Whether the train-mode graph, run in eval mode, gives what the model gives; False when it cannot be run."""
    from edp_fx.frontend.assemble import assemble
    from edp_fx.inputs import eval_mode

    real = [*inputs, *model.parameters(), *model.buffers()]
    if any(t.device.type == "meta" for t in real):
        return False
    gm = assemble(model, graph, tracer.extra_modules, tracer.constant_values)
    with eval_mode(gm), torch.no_grad():
        want = tensors_of(tracer.run(*inputs))
        got = tensors_of(gm(*inputs))
    return len(want) == len(got) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(want, got)
    )
