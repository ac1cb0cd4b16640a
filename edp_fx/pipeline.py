"""The whole in one call: trace, train to the budget, prune and merge."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, fx, nn

from edp_fx.checkpoint import check_saveable
from edp_fx.compressor import Compressor, Method
from edp_fx.compressor.method import FEW
from edp_fx.errors import BudgetError, CheckpointError, TrainingError, UnreachableError
from edp_fx.frontend import trace
from edp_fx.inputs import copied, normalize
from edp_fx.latency import Runtime
from edp_fx.one_shot import one_shot
from edp_fx.progress import nothing, speaks
from edp_fx.train import Recipe, Teacher, Trainer, Watcher
from edp_fx.train.deterministic import deterministic
from edp_fx.train.recipe import choose_epoch, seed_everything
from edp_fx.train.task import Task, input_names, split
from edp_fx.validation.checked import insert


def compress(
    model: nn.Module,
    data: Any,
    *,
    method: Method | str | None = None,
    recipe: Recipe | None = None,
    epochs: int | None = None,
    example_inputs: Any = None,
    val_loader: Any = None,
    loss: Callable[[Any, Any], Any] | None = None,
    metric: Any = None,
    teacher: nn.Module | str | None = None,
    runtime: Runtime | None = None,
    directory: str | Path | None = None,
    resume: bool = False,
    watcher: Watcher | None = None,
    before_writing: Callable[[], None] | None = None,
    **changes: Any,
) -> fx.GraphModule:
    """Make ``model`` small in one training run that ends at the budget.

    Args:
        model: any that traces; left as it is (a copy is trained).
        data: batches with a length: (images [N, C, H, W], labels [N]), or inputs and targets of any form, see
            :func:`~edp_fx.train.task.split`. Without training a few hundred of its images say what matters and how what
            stays makes up for what goes; None is taken too, by ``truncate``.
        method: how to compress: a :class:`Method` or a preset's name. ``scratch`` where None; where no epoch is trained
            ``one-shot``, and without data ``truncate``; a trained network wants ``trained``, or where images are few
            ``one-shot``.
        recipe: how to train.
        epochs: passes over the images, by the default recipe, instead of ``recipe``; 0 compresses without training.
        example_inputs: a tensor or tuple; two images of the data where None.
        val_loader: judged after every epoch.
        loss: (outputs, targets) -> scalar; cross entropy of logits [N, classes] and labels [N] where None.
        metric: (outputs, targets) -> number, the larger the better, or an object that collects, see
            :class:`~edp_fx.train.Task`; accuracy where None.
        teacher: a network to distil from in the same run, instead of the method's own; ``self``: this one as it is.
        runtime: what measures networks for a budget of latency; the budget's device where None, if this machine
            has it: the choice is corrected by what is measured.
        directory: where checkpoints and metrics go.
        resume: go on from the directory's checkpoint.
        watcher: shown the progress.
        before_writing: called once all is known to be good, before the first file is written.
        changes: fields of the method to change; ``macs=0.4``, ``params=`` or ``latency=`` (with ``device=`` and
            ``batch=``) make its budget.

    Returns:
        The compact network, on the device where it trained. ``meta["edp_fx.run"]`` holds the record of the run:
        ``method`` and ``recipe`` as plain values, ``macs`` (share of the dense network), ``max_rel_diff`` of pruning
        and merging, ``events``, ``refused``, and for a budget of latency ``timing``, see
        :meth:`edp_fx.compressor.timing.Timing.plain`.

    Raises:
        EdpError: an option is wrong, the model does not trace, the budget cannot be reached, training cannot go on.
    """
    recipe = _recipe(recipe, epochs)
    if resume and directory is None:
        raise TrainingError("resume: say with directory= where the checkpoint is")
    if method is None and recipe.epochs == 0:
        method = "truncate" if data is None else "one-shot"
    method = Method.of(method, **changes)
    if recipe.compiled and method.removals is None and not method.at_once:
        method = method.changed(removals=FEW)  # each new shape is compiled
    if isinstance(teacher, str):
        method, teacher = method.changed(teacher=teacher), None
    if recipe.epochs:
        recipe = recipe.tuning(method.pace)
    task = Task(loss, metric)
    if runtime is not None and (method.budget is None or method.budget.metric != "latency"):
        raise BudgetError("a runtime serves a budget of latency only: give latency=, or leave runtime out")
    if example_inputs is None:
        example_inputs = _first_inputs(model, data)
    inputs = normalize(example_inputs)
    look = watcher.look if watcher is not None and speaks() else nothing
    if recipe.epochs == 0:
        method.check_without_training()
        unused = [name for name in recipe.differing(Recipe(epochs=0)) if name != "seed"]
        given = {"teacher": teacher, "directory": directory, "val_loader": val_loader, "resume": resume or None}
        given |= {"loss": loss, "metric": metric}
        unused += [name for name, value in given.items() if value is not None]
        if unused:
            raise TrainingError(f"{unused[0]} applies to training only: leave it out, or train for an epoch or more")
        compressor = one_shot(model, inputs, method, _seen(model, inputs, data), runtime=runtime, look=look)
        if before_writing is not None:
            before_writing()
        return _described(compressor, method, recipe)

    def traced() -> fx.GraphModule:
        gm = trace(copied(model), inputs)
        task.check_outputs(fx.node.map_arg(gm.graph.output_node().args[0], lambda node: node.meta.get("val")))
        _tell_unsaveable(gm, inputs)
        return gm

    def trainer(gm: fx.GraphModule, make_compressor: Callable[..., Compressor]) -> Trainer:
        return Trainer(
            gm,
            data,
            recipe,
            val_loader=val_loader,
            make_compressor=make_compressor,
            directory=Path(directory) if directory is not None else None,
            teacher=_teacher(model, teacher, method, task),
            watcher=watcher,
            title="compressing",
            task=task,
            statistics=method.statistics,
        )

    def step_by_step(*, pairs: bool) -> Trainer:
        gm = insert(traced(), start=method.pairs) if pairs else traced()
        return trainer(
            gm,
            lambda graph, optimizer, steps: Compressor(
                graph, inputs, method, optimizer=optimizer, total_steps=steps, runtime=runtime
            ),
        )

    if method.at_once:
        traced()
        seed_everything(recipe.seed, 0)
        choose_epoch(0, data)
        with deterministic() if recipe.deterministic else nullcontext():
            untaught, seen = method.untaught, _seen(model, inputs, data)
            done = one_shot(model, inputs, untaught, seen, runtime=runtime, look=look)
        ready = trainer(done.gm, lambda graph, optimizer, steps: done)
    else:
        ready = _with_pairs_in_need(step_by_step, method)
    if before_writing is not None:
        before_writing()
    outcome = ready.run(resume=resume)
    assert outcome.compressor is not None
    return _described(outcome.compressor, method, recipe)


def _recipe(recipe: Recipe | None, epochs: int | None) -> Recipe:
    if (recipe is None) == (epochs is None):
        raise TrainingError("say how long to train: epochs=N or a recipe" + (", not both" if recipe else ""))
    return recipe if recipe is not None else Recipe(epochs=epochs)  # type: ignore[arg-type]


def _seen(model: nn.Module, inputs: tuple[Tensor, ...], data: Any) -> Iterator[tuple[Tensor, ...]] | None:
    """The model's inputs, batch after batch; None without data."""
    names = input_names(model, len(inputs))
    return None if data is None else (_inputs_of(batch, names) for batch in data)


def _with_pairs_in_need(make: Callable[..., Trainer], method: Method) -> Trainer:
    """The trainer of a network with pairs where ranks may go: where the method names them, or nothing else that it
    leaves to choose can reach the budget."""
    if method.kinds is not None or method.policy != "budget":
        return make(pairs=method.kinds is None or "rank" in method.kinds)
    try:
        return make(pairs=False)
    except UnreachableError:
        return make(pairs=True)


def _teacher(model: nn.Module, given: nn.Module | None, method: Method, task: Task) -> Teacher | None:
    network = given if given is not None else model if method.teacher == "self" else None
    if network is not None:
        return Teacher(network, method.distill, method.temperature, task.classifies)
    for name in ("distill", "temperature"):
        if name in method.differing(Method()):
            raise BudgetError(f"{name} applies where there is a teacher: give one, or teacher='self'")
    return None


def _tell_unsaveable(gm: fx.GraphModule, inputs: tuple[Tensor, ...]) -> None:
    """Warn before training of what ``save`` could not write after; the network may still be of use without it."""
    try:
        check_saveable(gm, inputs)
    except CheckpointError as error:
        warnings.warn(f"edp_fx.save will not be able to write the compressed network: {error}", stacklevel=4)


def _described(compressor: Compressor, method: Method, recipe: Recipe) -> fx.GraphModule:
    gm = compressor.gm
    gm.meta["edp_fx.run"] = {
        "method": method.plain(),
        "recipe": recipe.plain(),
        "kinds": list(compressor.method.kinds or ()),
        "metric": compressor.metric,
        compressor.metric: compressor.macs,
        "max_rel_diff": compressor.max_rel_diff,
        "events": compressor.events,
        "refused": compressor.refused,
        "layers": compressor.layers(),
    }
    if compressor.timing is not None:
        compressor.timing.read(gm, compressor.now / compressor.dense)
        gm.meta["edp_fx.run"]["timing"] = compressor.timing.plain()
    return gm


def _first_inputs(model: nn.Module, loader: Any) -> tuple[Tensor, ...]:
    if loader is None:
        raise TrainingError("give example_inputs, or data to take them from")
    inputs = _inputs_of(next(iter(loader), None), input_names(model))
    return tuple(one[:2].clone() for one in inputs)


def _inputs_of(batch: Any, names: Sequence[str]) -> tuple[Tensor, ...]:
    """The model's inputs in a batch, which may be nothing else where nothing is learnt."""
    return (batch,) if isinstance(batch, Tensor) else split(batch, names)[0]
