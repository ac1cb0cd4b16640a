"""The whole in one call: trace, insert pairs, train to the budget, prune and merge."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from edp_fx.compressor import Budget, Compressor, Importance
from edp_fx.compressor.kinds import check_without_training
from edp_fx.errors import BudgetError, TrainingError
from edp_fx.frontend import trace
from edp_fx.inputs import normalize
from edp_fx.latency import LatencyTable
from edp_fx.passes.insert import insert
from edp_fx.train import Recipe, Trainer, Watcher


def compress(
    model: nn.Module,
    train_loader: Any,
    *,
    epochs: int | None = None,
    macs: float | None = None,
    params: float | None = None,
    latency: float | None = None,
    example_inputs: Any = None,
    val_loader: Any = None,
    recipe: Recipe | None = None,
    policy: str = "budget",
    importance: str = "taylor",
    strength: float = 1e-3,
    floor: float = 0.15,
    allow_inexact: bool = False,
    kinds: Sequence[str] = ("rank", "channel"),
    align: int = 1,
    latency_table: LatencyTable | None = None,
    insert_options: dict[str, Any] | None = None,
    teacher: nn.Module | None = None,
    directory: str | Path | None = None,
    resume: bool = False,
    watcher: Watcher | None = None,
    before_writing: Callable[[], None] | None = None,
    seed: int = 0,
) -> fx.GraphModule:
    """Make ``model`` small in one training run that ends at the budget.

    Args:
        model: any classifier that traces; left as it is (a copy is trained).
        train_loader: batches of (images [N, C, H, W], labels [N]) with a length. With ``epochs=0`` a few of
            its batches calibrate the truncation; None is taken too.
        epochs: passes over the images; 0 truncates by singular values without training. Part of ``recipe``
            where that is given.
        macs: budget as a share (0, 1] of the dense network's multiply-accumulates, or an amount above 1.
        params: likewise of the parameters.
        latency: likewise of the milliseconds, as ``latency_table`` measures layers; what the end network really
            measures may differ and is in the record.
        example_inputs: a tensor or tuple; two images of the loader where None.
        val_loader: judged after every epoch.
        recipe: how to train.
        policy: ``budget`` or ``lambda``.
        importance: ``taylor``, ``norm`` or ``singular``.
        strength: λ of the policy ``lambda``, for ranks and channels.
        floor: share of each group of channels or ranks that stays in any case, where the budget allows.
        allow_inexact: also prune channels whose removal is not exact.
        kinds: what may go, see :class:`Compressor`; without ``"rank"`` no pairs are inserted. Not with ``epochs=0``.
        align: keep a multiple of so many channels and ranks in every group of more, within the budget.
        latency_table: for a budget of latency; onnxruntime on one thread, one image, where None.
        insert_options: options of :func:`edp_fx.insert`.
        teacher: a network to distil from in the same run.
        directory: where checkpoints and metrics go.
        resume: go on from the directory's checkpoint.
        watcher: shown the progress.
        before_writing: called once all is known to be good, before the first file is written.
        seed: reproduces the run; part of ``recipe`` where that is given.

    Returns:
        The compact network, on the device where it trained. ``meta["edp_fx.run"]`` holds the record of the run:
        ``macs`` (share of the dense network), ``max_rel_diff`` of pruning and merging, ``events``, ``refused``, and for
        a budget of latency ``latency_ms``: ``dense``, ``target``, ``predicted`` and ``measured``.

    Raises:
        EdpError: the model does not trace, the budget cannot be reached, training cannot go on.
    """
    if recipe is None:
        if epochs is None:
            raise TrainingError("say how long to train: epochs=N, or a recipe")
        recipe = Recipe(epochs=epochs, seed=seed)
    budget = None
    if policy == "budget" or any(value is not None for value in (macs, params, latency)):
        budget = Budget(macs=macs, params=params, latency=latency)
    if example_inputs is None:
        example_inputs = _first_images(train_loader)
    inputs = normalize(example_inputs)
    gm = trace(copy.deepcopy(model), inputs)
    if "rank" in kinds:
        gm = insert(gm, **(insert_options or {}))
    if recipe.epochs == 0:
        check_without_training(kinds)
        if budget is None:
            raise BudgetError("without training a budget is needed: macs=, params= or latency=")
        compressor = truncate(gm, inputs, budget, train_loader, align=align, latency_table=latency_table)
        if before_writing is not None:
            before_writing()
        return _described(compressor)

    def make(graph: fx.GraphModule, optimizer: Any, total_steps: int) -> Compressor:
        return Compressor(
            graph,
            inputs,
            budget=budget,
            optimizer=optimizer,
            total_steps=total_steps,
            policy=policy,
            **({"importance": importance} if policy == "budget" else {"strength": strength}),
            floor=floor,
            allow_inexact=allow_inexact,
            kinds=kinds,
            align=align,
            latency_table=latency_table,
        )

    trainer = Trainer(
        gm,
        train_loader,
        recipe,
        val_loader=val_loader,
        make_compressor=make,
        directory=Path(directory) if directory is not None else None,
        teacher=teacher,
        watcher=watcher,
        title="compressing",
    )
    if before_writing is not None:
        before_writing()
    outcome = trainer.run(resume=resume)
    assert outcome.compressor is not None
    return _described(outcome.compressor)


def truncate(
    gm: fx.GraphModule,
    example_inputs: Any,
    budget: Budget,
    calibration: Iterable[Any] | None = None,
    *,
    align: int = 1,
    latency_table: LatencyTable | None = None,
) -> Compressor:
    """Reach the budget without training, by cutting the smallest singular values; returns a finished
    compressor.

    Args:
        gm: a traced network with pairs inserted; changed in place.
        example_inputs: a tensor or tuple.
        budget: what the result may cost.
        calibration: batches whose images weight the singular values by what the layers really see.
        align, latency_table: as of :class:`Compressor`.

    Raises:
        BudgetError: ranks alone cannot reach the budget.
    """
    from edp_fx.compressor.calibrate import whiten

    measure: str | Importance = "singular" if calibration is None else whiten(gm, calibration)
    compressor = Compressor(
        gm,
        example_inputs,
        budget=budget,
        kinds=("rank",),
        importance=measure,
        align=align,
        latency_table=latency_table,
    )
    compressor.finish()
    return compressor


def _described(compressor: Compressor) -> fx.GraphModule:
    gm = compressor.gm
    gm.meta["edp_fx.run"] = {
        "metric": compressor.metric,
        compressor.metric: compressor.macs,
        "max_rel_diff": compressor.max_rel_diff,
        "events": compressor.events,
        "refused": compressor.refused,
        "layers": compressor.layers(),
    }
    table = compressor.survey.cost.table
    if compressor.metric == "latency" and table is not None:
        gm.meta["edp_fx.run"]["latency_ms"] = {
            "runtime": table.runtime.name,
            "batch": table.batch,
            "threads": table.runtime.threads,
            "dense": compressor.dense,
            "target": compressor.target,
            "predicted": compressor.now,
            "measured": table.network(gm, compressor.example_inputs),
        }
    return gm


def _first_images(loader: Any) -> tuple[torch.Tensor, ...]:
    if loader is None:
        raise TrainingError("give example_inputs, or a loader to take them from")
    images = next(iter(loader))[0]
    return (images[:2].clone(),)
