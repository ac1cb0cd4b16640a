"""Compression without training: what matters least goes at once, and what stays makes up for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, fx, nn

from edp_fx.compensation import Refit
from edp_fx.compensation.refit import Kept
from edp_fx.compressor import Compressor, Method
from edp_fx.compressor.calibrate import whiten
from edp_fx.compressor.reconstruction import Reconstruction
from edp_fx.errors import BudgetError, DataError, UnreachableError
from edp_fx.frontend import trace
from edp_fx.inputs import copied, device_of
from edp_fx.latency import Runtime
from edp_fx.progress import Look, nothing
from edp_fx.validation.checked import insert

IMAGES = 224  # that are looked at; the time grows with them
AT_ONCE = 8  # a processor is quickest where what a layer puts out still fits its caches


def one_shot(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    method: Method,
    data: Iterable[tuple[Tensor, ...]] | None = None,
    *,
    runtime: Runtime | None = None,
    look: Look = nothing,
) -> Compressor:
    """Reach the budget without training; returns a finished compressor.

    Args:
        model: any model that traces, trained; left as it is.
        example_inputs: what it takes.
        method: the preset ``one-shot`` or ``truncate`` with a budget.
        data: inputs of the model, a tuple a batch, of which the first few hundred images are used: they weigh what
            goes, and layers are refitted on them. None: singular values or norms decide, and nothing is refitted.
        runtime: as of :class:`~edp_fx.Compressor`.
        look: told of what is looked at.

    Raises:
        BudgetError: something in the method needs training, or images, or the budget cannot be reached.
        DataError: the data has no images.
    """
    method.check_without_training()
    if data is None and method.importance == "reconstruction":
        raise BudgetError("the importance reconstruction needs images: give data, or take the method truncate")
    whole = trace(copied(model), example_inputs)
    batches = None if data is None else _few(data, whole)

    def reduced(*, pairs: bool) -> Compressor:
        gm = trace(copied(model), example_inputs)
        used = method
        if pairs:
            insert(gm, start=method.pairs)
        if batches is not None and (pairs or method.importance == "reconstruction"):
            energies = whiten(gm, batches, limit=len(batches)) if pairs else None
            if method.importance == "reconstruction":
                used = method.changed(importance=Reconstruction.of(gm, batches, look))
            elif method.importance == "singular" and energies is not None:
                used = method.changed(importance=energies)
        return Compressor(gm, example_inputs, used, runtime=runtime)

    compressor = _with_pairs_in_need(reduced, method)
    gm = compressor.finish()
    if batches is not None:
        report = Refit(gm, whole, _kept(gm), batches, look=look).run()
        gm.meta["edp_fx.reports"] = [*gm.meta.get("edp_fx.reports", []), report]
    return compressor


def _with_pairs_in_need(make: Callable[..., Compressor], method: Method) -> Compressor:
    """Of a network with pairs where ranks may go: where the method names them, or nothing else reaches the budget."""
    if method.kinds is not None:
        return make(pairs="rank" in method.kinds)
    try:
        return make(pairs=False)
    except UnreachableError:
        return make(pairs=True)


def _few(data: Iterable[tuple[Tensor, ...]], gm: fx.GraphModule) -> list[tuple[Tensor, ...]]:
    """The first images, a few at a time, where the network is."""
    found: list[tuple[Tensor, ...]] = []
    device, count = device_of(gm), 0
    for batch in data:
        inputs = tuple(one.to(device) for one in batch)
        length, size = len(inputs[0]), AT_ONCE if inputs[0].device.type == "cpu" else 8 * AT_ONCE
        if any(len(one) != length for one in inputs):  # what is not by image goes with all of them
            found.append(inputs)
        else:
            found += zip(*(one[: IMAGES - count].split(size) for one in inputs), strict=True)
        count += length
        if count >= IMAGES:
            break
    if not found:
        raise DataError("the data has no images: without training a few hundred are needed, or none and data=None")
    return found


def _kept(gm: fx.GraphModule) -> Kept:
    """What of each parameter is still there, by the reports of what was pruned."""
    kept: dict[str, Any] = {}
    for report in gm.meta.get("edp_fx.reports", []):
        kept |= report.facts.get("kept", {})
    return kept
