"""``trace``: the tracer run, checked in both modes, put together as a GraphModule."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from edp_fx.errors import TraceError
from edp_fx.frontend.assemble import assemble
from edp_fx.frontend.batch import fixes_batch_size
from edp_fx.frontend.guards import Guard
from edp_fx.frontend.hooks import follow_hooks
from edp_fx.frontend.location import described
from edp_fx.frontend.modes import mode_dependent
from edp_fx.frontend.normal_form import remove_dead_code, use_modules
from edp_fx.frontend.proxies import Untraceable
from edp_fx.frontend.tracer import ModuleTracer
from edp_fx.frontend.unwrap import unwrapped
from edp_fx.inputs import normalize
from edp_fx.refusal import Refusal


@dataclass
class TraceReport:
    """How a graph was obtained.

    Attributes:
        method: "fx", or "fx+opaque" where some module could not be traced through.
        opaque: the modules kept whole, with the reason; layers inside them are still reached by insertion.
        guards: values the model's Python code took from the example inputs.
    """

    method: str = "fx"
    opaque: list[Refusal] = field(default_factory=list)
    guards: list[Guard] = field(default_factory=list)


def _run(tracer: ModuleTracer, model: nn.Module) -> fx.Graph:
    try:
        graph = tracer.trace(model)
    except Exception as error:
        raise TraceError(
            f"cannot trace {type(model).__name__}: {described(error, Untraceable)}. "
            "Check that the model runs on the example inputs; control flow on the input's values cannot be a graph: "
            "edp_fx.trace_parts takes the parts that can"
        ) from error
    use_modules(graph, model)
    remove_dead_code(graph)
    return graph


def trace(model: nn.Module, example_inputs: Any) -> fx.GraphModule:
    """Trace a model to a graph of its own modules that trains, evaluates, copies and saves as the model does.

    ``train()`` and ``eval()`` switch dropout, stochastic depth, batch norm and attention dropout as in the model.
    The batch size is free. Parameters and buffers are the model's own tensors under their own names, as in
    ``torch.fx.symbolic_trace``: who trains or compresses the graph changes the model's weights, and traces
    ``copy.deepcopy(model)`` to keep them. Autograd functions keep their own backward. Every node has
    its fake value in ``node.meta["val"]``; a :class:`TraceReport` is in ``gm.meta["edp_fx.trace"]``.

    Args:
        model: any module, on any device (meta included: nothing is computed on real tensors); what ``torch.compile``,
            ``DataParallel`` and ``DistributedDataParallel`` made is taken out of its wrapper. It is left as it is.
        example_inputs: a tensor or a tuple of tensors, the positional arguments of ``forward``; the other
            arguments are bound to their defaults.

    Raises:
        TraceError: the model does not run on the example inputs, its own forward depends on their values, or it is
            scripted or sharded.
        ModelError: the model is no module, or the example inputs are not tensors.
    """
    model = unwrapped(model)
    inputs: tuple[Tensor, ...] = normalize(example_inputs, model)
    if isinstance(model, fx.GraphModule) and "edp_fx.trace" in model.meta:
        return model
    with torch.enable_grad():
        tracer = ModuleTracer(inputs)
        graph = _run(tracer, model)
        if fixes_batch_size(inputs, tracer, graph):
            forced = {guard.module: "it takes the batch size as a number" for guard in tracer.guards if guard.module}
            tracer = ModuleTracer(inputs, force_opaque=forced, mode=tracer.mode)
            graph = _run(tracer, model)
            if fixes_batch_size(inputs, tracer, graph):
                raise TraceError(
                    f"the forward of {type(model).__name__} takes the batch size as a number (int(x.shape[0]), say); "
                    "keep it a size, as x.shape[0] or -1 in a view, so that the graph holds at any batch size"
                )
        while tracer.mode_readers:
            forced = {**tracer.force_opaque, **mode_dependent(model, inputs, tracer, graph, _run)}
            if forced == tracer.force_opaque:
                break
            tracer = ModuleTracer(inputs, force_opaque=forced, mode=tracer.mode)
            graph = _run(tracer, model)  # what is around those modules may differ, too
    for node in graph.nodes:
        if node.op == "output":
            node.meta["val"] = fx.node.map_arg(node.args[0], lambda n: n.meta["val"])
        else:
            node.meta["val"] = tracer.mode.fake(node.meta["val"])
    gm = assemble(model, graph, tracer.extra_modules, tracer.constant_values)
    gm.meta["edp_fx.trace"] = TraceReport(
        "fx+opaque" if tracer.opaque else "fx", list(tracer.opaque), list(tracer.guards)
    )
    follow_hooks(gm, inputs, trace)
    return gm
