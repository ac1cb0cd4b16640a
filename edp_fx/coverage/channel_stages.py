"""Stages for the channel analysis and for pruning and merging: figures, and the oracles they must pass."""

from __future__ import annotations

import copy
import gc
import time
from typing import Any

import torch
from torch import Tensor, fx, nn

from edp_fx.cost import measure
from edp_fx.coverage.failure import Figures, StageFailed
from edp_fx.coverage.subject import Subject
from edp_fx.errors import EdpError
from edp_fx.frontend import propagate
from edp_fx.leaves import tensors_of
from edp_fx.prune_merge import prune_and_merge
from edp_fx.validation import masking
from edp_fx.validation.checked import analyze
from edp_fx.validation.compare import difference, last_bit, run
from edp_fx.validation.samples import calibrate

SOUND = 1e-9
SHARES = (0.9, 0.5, 0.75)  # kept at random; with half of everything gone little of the input reaches a deep output
SOUND_SINGLE = 1e-4
FP32, FP64 = 1e-5, 1e-10


def analyze_stage(subject: Subject) -> Figures:
    """Groups, prunable and exact shares, operations without a rule, seconds."""
    began = time.perf_counter()
    graph = subject.shared["channels"] = analyze(_graph(subject), subject.inputs)
    figures = graph.summary()
    figures["analyze_seconds"] = round(time.perf_counter() - began, 3)
    figures["frozen"] = dict(list(figures["frozen"].items())[:5])
    if graph.unproved is not None:
        figures["unproved"] = graph.unproved
    return figures


def sound_stage(subject: Subject) -> Figures:
    """Pruning against masked execution in float64 at another batch size, for three random keep-sets: of all groups,
    of some of them, of the exact ones.

    To 1e-9 of the output's standard deviation, or ten times what the last bit of the input does to it if that is more.
    Also two controls: the masked network differs from the original, and one wrong index is seen.
    """
    doubled = calibrate(_to(copy.deepcopy(_graph(subject)), torch.float64), _cast(subject.inputs, torch.float64))
    graph = analyze(doubled, _cast(subject.inputs, torch.float64), check=False)
    inputs = _cast(subject.other, torch.float64)
    plain = masking.plain_run(doubled, inputs)
    figures: Figures = {"max_diff": 0.0, "control": None, "fault": None}
    tolerance = SOUND
    if _computes_in_single(doubled, inputs):  # the model's own casts: no float64 result can be had
        figures["float32_inside"], tolerance = True, SOUND_SINGLE
    for seed, share in enumerate(SHARES):
        keep = masking.random_keep(graph, seed, share, exact_only=seed == 2, groups=0.3 if seed == 1 else 1.0)
        if not keep:
            continue
        gc.collect()  # copies of graph modules are cyclic, and of the largest networks no three fit into memory
        masked = masking.masked_run(doubled, graph, keep, inputs)
        gc.collect()
        pruned = masking.pruned_run(doubled, graph, keep, inputs)
        found = masking.difference(masked, pruned)
        figures["max_diff"] = max(figures["max_diff"], found)
        if found > tolerance:  # a network that blows up rounding can be compared no better than with itself
            noise = masking.difference(masked, masking.masked_run(doubled, graph, keep, last_bit(inputs)))
            figures["noise"], tolerance = noise, max(tolerance, 10 * noise)
        if seed == 0:
            figures["control"] = masking.difference(plain, masked)
            figures["fault"] = masking.difference(masked, masking.faulty_run(doubled, graph, keep, inputs))
    if not figures["max_diff"] <= tolerance:
        raise StageFailed(f"pruning differs from masked execution by {figures['max_diff']:.1e} σ", figures)
    if figures["control"] is not None and not figures["control"] > 0.1:
        raise StageFailed("the masked network equals the original: the check is vacuous", figures)
    if figures["fault"] is not None and not figures["fault"] > tolerance:
        raise StageFailed("a wrong index was not seen: the check is vacuous", figures)
    return figures


def prune_merge_stage(subject: Subject) -> Figures:
    """Half of the exact channels and ranks zeroed, pruned and merged: the function stays, in fp32 and fp64.

    To 1e-5 and 1e-10 relative, or in fp32 ten times what the last bit of the input does to it if that is more; at
    another batch size and, where the model takes one, another image size; then one backward pass. The
    network with pairs is used up: copies of the largest models would not fit into memory.
    """
    if subject.inserted is None:
        raise EdpError("there is no network with pairs: the insert stage failed")
    zeroed, subject.inserted = calibrate(subject.inserted, subject.inputs).eval(), None
    graph = analyze(zeroed, subject.inputs, check=False)
    keep = masking.random_keep(graph, 0, exact_only=True)
    masking.zero_members(zeroed, graph, keep, ("producer", "consumer", "affine", "other"))
    began = time.perf_counter()
    small = prune_and_merge(zeroed, subject.inputs)
    figures: Figures = {"prune_merge_seconds": round(time.perf_counter() - began, 3)}
    subject.shared["small"] = small
    figures["macs_ratio"] = round(measure(small, subject.inputs).macs / measure(subject.model, subject.inputs).macs, 4)
    before = run(zeroed, subject.other, train=False)
    figures["max_rel_diff"] = difference(before, run(small, subject.other, train=False))["output"]
    tolerance = FP32
    if figures["max_rel_diff"] > tolerance:  # as in the sound stage
        noise = figures["noise"] = difference(before, run(zeroed, last_bit(subject.other), train=False))["output"]
        tolerance = max(tolerance, 10 * noise)
    figures["other_size"] = _other_size(zeroed, small, subject)
    trained = run(small, subject.other, train=True)
    figures["max_rel_diff_fp64"] = _double_difference(_to(zeroed, torch.float64), subject)
    if figures["max_rel_diff"] > tolerance:
        raise StageFailed(f"PM changed the outputs by {figures['max_rel_diff']:.1e} relative", figures)
    single = figures["max_rel_diff_fp64"] > FP64 and _computes_in_single(_graph(subject), subject.inputs, torch.float64)
    if figures["max_rel_diff_fp64"] > (FP32 if single else FP64):
        raise StageFailed(f"PM changed the fp64 outputs by {figures['max_rel_diff_fp64']:.1e} relative", figures)
    if not all(bool(g.isfinite().all()) for g in trained.gradients):
        raise StageFailed("a gradient of the pruned network is not finite", figures)
    return figures


def onnx_stage(subject: Subject) -> Figures:
    """The pruned and merged network exported and compared under onnxruntime."""
    from edp_fx.lowering.stages import onnx_stage as lower

    return _checked(lower(subject.shared.get("small") or _graph(subject), subject.inputs, subject.shared))


def engine_stage(subject: Subject) -> Figures:
    """TensorRT-RTX engines of the pruned and merged network, fp32 and fp16."""
    from edp_fx.lowering.stages import engine_stage as lower

    return _checked(lower(subject.shared.get("small") or _graph(subject), subject.inputs, subject.shared))


def _checked(stage: Figures) -> Figures:
    if not stage.pop("ok"):
        raise StageFailed(str(stage.pop("reason")), stage)
    return stage


def _graph(subject: Subject) -> fx.GraphModule:
    if subject.graph is None:
        raise EdpError("there is no graph: the trace stage failed")
    return subject.graph


def _computes_in_single(gm: fx.GraphModule, inputs: tuple[Tensor, ...], dtype: torch.dtype | None = None) -> bool:
    """Whether a float64 network casts to float32 somewhere inside."""
    if dtype is not None:
        gm, inputs = _to(copy.deepcopy(gm), dtype), _cast(inputs, dtype)
    propagate(gm, inputs)
    values = [leaf for node in gm.graph.nodes for leaf in tensors_of(node.meta.get("val"))]
    return any(value.dtype is torch.float32 for value in values)


def _to(model: nn.Module, dtype: torch.dtype) -> Any:
    return model.to(dtype)


def _cast(inputs: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)


def _double_difference(doubled: fx.GraphModule, subject: Subject) -> float:
    """The relative difference that pruning and merging makes to a float64 network."""
    small = prune_and_merge(doubled, _cast(subject.inputs, torch.float64))
    wide = _cast(subject.other, torch.float64)
    return difference(run(doubled, wide, train=False), run(small, wide, train=False))["output"]


def _other_size(before: fx.GraphModule, after: fx.GraphModule, subject: Subject) -> float | None:
    """The relative difference on larger images; None where the graph takes only one size."""
    larger = tuple(
        torch.randn(1, *x.shape[1:-2], x.shape[-2] + 32, x.shape[-1] + 32) if x.ndim == 4 else x for x in subject.other
    )
    try:
        reference = run(before, larger, train=False)
    except Exception:
        return None
    return difference(reference, run(after, larger, train=False))["output"]
