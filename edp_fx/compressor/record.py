"""What a run did, as plain data: the shape of every layer before and after, and what was left alone and
why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from edp_fx.compressor.factors import factors
from edp_fx.compressor.kinds import KINDS
from edp_fx.pairs import Pair

if TYPE_CHECKING:
    from edp_fx.compressor.candidates import Candidates

Shapes = dict[str, dict[str, Any]]


def layer_shapes(model: nn.Module) -> Shapes:
    """Per convolution or linear layer (a pair counts as one): outputs, inputs, rank (None where plain)."""
    result: Shapes = {}
    inside: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, Pair):
            basis, coefficient = factors(module)
            inputs = int(basis.shape[1]) * module.groups
            result[name] = {"outputs": len(coefficient), "inputs": inputs, "rank": module.rank}
            inside |= {f"{name}.basis", f"{name}.coefficient"}
        elif name not in inside:
            weight = getattr(module, "weight", None)
            if isinstance(weight, torch.Tensor) and weight.dim() >= 2 and not isinstance(module, nn.Embedding):
                inputs = int(weight.shape[1]) * int(getattr(module, "groups", 1))
                result[name] = {"outputs": int(weight.shape[0]), "inputs": inputs, "rank": None}
    return result


def changes(before: Shapes, after: Shapes) -> list[dict[str, Any]]:
    """One record per layer: outputs, inputs and rank as [before, after]; form is ``pair``, ``merged``,
    ``plain``, ``gone`` or one of a kind's (:attr:`Kind.forms`), as ``separate``: a depthwise and a pointwise layer."""
    records = []
    parts = {form: part for kind in KINDS.values() for form, part in kind.forms.items()}
    for name, old in before.items():
        forms = {form: after[f"{name}.{part}"] for form, part in parts.items() if f"{name}.{part}" in after}
        new = after.get(name, next(iter(forms.values()), None))
        if new is None:
            form, new = "gone", {"outputs": 0, "inputs": 0, "rank": None if old["rank"] is None else 0}
        elif forms:
            form = next(iter(forms))
        else:
            form = "plain" if old["rank"] is None else "merged" if new["rank"] is None else "pair"
        records.append(
            {
                "name": name,
                "form": form,
                **{key: [old[key], new[key]] for key in ("outputs", "inputs", "rank")},
            }
        )
    return records


def refusals(
    gm: fx.GraphModule, candidates: Candidates, kinds: Sequence[str], allow_inexact: bool
) -> list[dict[str, str]]:
    """Everything that was left alone: by the front end, by the passes, and groups that may not be pruned."""
    found: dict[tuple[str, str], None] = {}
    trace_report = gm.meta.get("edp_fx.trace")
    for refusal in getattr(trace_report, "opaque", ()):
        found[refusal.node, refusal.reason] = None
    for report in gm.meta.get("edp_fx.reports", ()):
        for refusal in report.refused:
            found[refusal.node, refusal.reason] = None
    for group in candidates.graph.groups:
        if not group.producers:
            continue  # the channels of the images
        if group.frozen is not None:
            found[group.name, group.frozen] = None
        elif group.kind in kinds and not group.exact and not allow_inexact:
            found[group.name, "removal is not exact: " + "; ".join(group.inexact_reasons)] = None
    for one in candidates.untrained:
        found[one.name, f"what weighs it as {one.kind} is not trained: it has no gradient"] = None
    return [{"node": node, "reason": reason} for node, reason in found]
