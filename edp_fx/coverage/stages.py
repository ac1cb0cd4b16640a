"""The stages a model goes through. A stage is a function of the subject that returns figures and raises on failure.

To add one, write the function and name it in ``STAGES``, in the order of execution.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from edp_fx.coverage import channel_stages
from edp_fx.coverage.failure import Figures, StageFailed
from edp_fx.coverage.subject import Subject
from edp_fx.errors import EdpError
from edp_fx.frontend import trace
from edp_fx.frontend.effective import Site, find_sites
from edp_fx.inputs import COMPUTE_LAYERS
from edp_fx.leaves import tensors_of
from edp_fx.pairs import Pair
from edp_fx.validation.checked import insert
from edp_fx.validation.compare import Run, difference, is_finite, last_bit, relative, run

TOLERANCE = 1e-5  # relative, float32
_DOUBLE_TOLERANCE = 1e-8  # relative, float64
_WEIGHT_TOLERANCE = 3e-6  # relative, float32


def trace_stage(subject: Subject) -> Figures:
    """Trace; both modes against the model at another batch size; state dict; which layers the graph shows."""
    model = subject.model
    graph = subject.graph = trace(model, subject.inputs)
    executed = _executed_layers(subject)
    report = graph.meta["edp_fx.trace"]
    figures: Figures = {
        "nodes": len(graph.graph.nodes),
        "size": subject.size,
        "opaque": [f"{one.node}: {one.reason}" for one in report.opaque],
        **_visible(subject, executed),
    }
    if set(graph.state_dict()) != set(model.state_dict()):
        raise StageFailed("the graph's state dict has other keys than the model's", figures)
    _equal(subject, graph, figures, "the traced graph differs from the model", lambda g: g)
    return figures


def train_step_stage(subject: Subject) -> Figures:
    """One optimiser step of the graph changes every parameter that has a gradient and gives finite numbers."""
    graph = copy.deepcopy(_graph(subject)).train()
    optimizer = torch.optim.SGD(graph.parameters(), lr=1e-3)
    torch.manual_seed(0)
    outputs = tensors_of(graph(*subject.other))
    loss = sum((t.float() ** 2).mean() for t in outputs)
    assert isinstance(loss, Tensor)
    loss.backward()
    reached = sum(p.grad is not None for p in graph.parameters())
    total = len(list(graph.parameters()))
    figures = {"loss": float(loss), "with_gradient": reached, "parameters": total}
    if not loss.isfinite():
        raise StageFailed("the loss is not finite", figures)
    optimizer.step()
    return figures


def insert_stage(subject: Subject) -> Figures:
    """Insert pairs everywhere; the result against the original in both modes."""
    original = copy.deepcopy(_graph(subject))
    sites = find_sites(original)
    graph = subject.inserted = insert(original)
    report = graph.meta["edp_fx.reports"][-1]
    made = [site for site in sites if site.name in set(report.rewritten)]
    figures: Figures = {
        "layers": len(report.rewritten),
        "refused": len(report.refused),
        "refusals": _by_reason(report.refused),
        "insert_seconds": report.facts["seconds"],
    }
    _equal(subject, graph, figures, "the network with pairs differs from the original", _insert_again)
    if figures["precision"] == "fp64":  # the outputs in float32 said nothing of the weights
        figures["weight_rel_diff"] = _weight_difference(graph, made)
        if figures["weight_rel_diff"] > _WEIGHT_TOLERANCE:
            raise StageFailed(f"a pair's weight is {figures['weight_rel_diff']:.1e} from the layer's", figures)
    return figures


STAGES: dict[str, Callable[[Subject], Figures]] = {
    "trace": trace_stage,
    "train_step": train_step_stage,
    "insert": insert_stage,
    "analyze": channel_stages.analyze_stage,
    "sound": channel_stages.sound_stage,
    "prune_merge": channel_stages.prune_merge_stage,
    "onnx": channel_stages.onnx_stage,
    "engine": channel_stages.engine_stage,
}


def _insert_again(graph: fx.GraphModule) -> fx.GraphModule:
    # The weights are compared by themselves; what is left to compare is the graph, and this start costs nothing.
    return insert(graph, start="identity", check=False)


def _graph(subject: Subject) -> Any:
    if subject.graph is None:
        raise EdpError("there is no graph: the trace stage failed")
    return subject.graph


def _reference(subject: Subject) -> tuple[Run, Run]:
    """The original's run in eval and in train mode; computed once."""
    if "reference" not in subject.shared:
        runs = tuple(run(subject.model, subject.other, train=train) for train in (False, True))
        if not all(map(is_finite, runs)):
            raise EdpError("the original network gives numbers that are not finite, or all nil: nothing to compare")
        subject.shared["reference"] = runs
    return subject.shared["reference"]


def _reference_double(subject: Subject) -> tuple[Run, Run]:
    """The original's runs in float64; computed once."""
    if "reference, double" not in subject.shared:
        model, inputs = _doubled(subject), _double(subject.other)
        subject.shared["reference, double"] = tuple(run(model, inputs, train=train) for train in (False, True))
    return subject.shared["reference, double"]


def _doubled(subject: Subject) -> nn.Module:
    return copy.deepcopy(subject.model).double()


def _double(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.double() for x in inputs)


def _differences(references: tuple[Run, Run], graph: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, float]:
    evaluated, trained = references
    return {
        "eval": difference(evaluated, run(graph, inputs, train=False))["output"],
        **difference(trained, run(graph, inputs, train=True)),
    }


def _equal(
    subject: Subject, graph: nn.Module, figures: Figures, reason: str, redo: Callable[[fx.GraphModule], nn.Module]
) -> None:
    """Compare with the original: outputs in eval mode; outputs, input gradients and buffers in train mode.

    In float32 to 1e-5. A batch norm over few samples and every kink of an activation amplify single rounding errors
    beyond that in many networks, so there float64, in which ``redo`` repeats the step, decides: to 1e-8, or ten times
    what the last bit of the input does to the original if that is more.
    """
    figures["fp32"] = _differences(_reference(subject), graph, subject.other)
    worst = figures["max_rel_diff"] = max(figures["fp32"].values())
    figures["precision"] = "fp32"
    if worst > TOLERANCE:
        double = redo(copy.deepcopy(_graph(subject)).double())
        found = figures["fp64"] = _differences(_reference_double(subject), double, _double(subject.other))
        worst = figures["max_rel_diff"] = max(found.values())
        figures["precision"] = "fp64"
        if worst <= _DOUBLE_TOLERANCE:
            return
        noise = figures["noise"] = _differences(
            _reference_double(subject), _doubled(subject), last_bit(_double(subject.other))
        )
        if any(found[key] > max(_DOUBLE_TOLERANCE, 10 * noise[key]) for key in found):
            raise StageFailed(f"{reason}: {worst:.1e} relative in float64", figures)


@torch.no_grad()
def _weight_difference(graph: fx.GraphModule, sites: list[Site]) -> float:
    """The largest difference of a pair's C·B from the layer's weight, relative to its largest value."""
    worst = 0.0
    for site in sites:
        pair = graph.get_submodule(site.home)
        assert isinstance(pair, Pair)
        assert site.weight is not None
        worst = max(worst, relative([site.weight], [pair.effective_weight()]))
    return worst


def _executed_layers(subject: Subject) -> set[int]:
    """The layers that a run of the model calls, by identity."""
    called: set[int] = set()
    handles = [
        module.register_forward_hook(lambda m, *_: called.add(id(m)))
        for module in subject.model.modules()
        if isinstance(module, COMPUTE_LAYERS)
    ]
    try:
        _reference(subject)
    finally:
        for handle in handles:
            handle.remove()
    return called


def _visible(subject: Subject, executed: set[int]) -> Figures:
    """How many layers are nodes of the graph, of those that a run executes by calling them or by their weight."""
    sites = [site for site in find_sites(_graph(subject)) if site.weight is not None or site.module is not None]
    visible = {id(site.weight) if site.module is None else _weight_id(site.module) for site in sites}
    called = {_weight_id(m) for m in subject.model.modules() if id(m) in executed}
    return {"layers": len(visible | called), "visible": len(visible)}


def _weight_id(layer: nn.Module) -> int:
    return id(layer._parameters.get("weight", layer))


def _by_reason(refused: list[Any]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for one in refused:
        key = one.reason.split(":")[0]
        counts[key] = counts.get(key, 0) + 1
    return counts
