"""The part that goes into a training loop: one run that ends at the budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx
from torch.optim import Optimizer

from edp_fx.compressor.budget import Budget, check_reachable
from edp_fx.compressor.candidates import Candidates, Scope
from edp_fx.compressor.elements import Elements, Keep
from edp_fx.compressor.factors import coefficient_gains
from edp_fx.compressor.importance import Context, Norm, agreed
from edp_fx.compressor.measures import make_importance
from edp_fx.compressor.method import Method
from edp_fx.compressor.misuse import check_given, check_over, check_ready, unweighed
from edp_fx.compressor.network import Network
from edp_fx.compressor.offer import offer_kinds
from edp_fx.compressor.optimizer import carry_state, without_decay
from edp_fx.compressor.progress import Progress
from edp_fx.compressor.proximal import Proximal, balance
from edp_fx.compressor.record import changes, layer_shapes, refusals
from edp_fx.compressor.resuming import state_of, take_up
from edp_fx.compressor.timing import TRIES, Timing, device_of
from edp_fx.errors import BudgetError
from edp_fx.frontend import propagate
from edp_fx.inputs import normalize
from edp_fx.latency import Runtime
from edp_fx.pairs import Pair
from edp_fx.passes.merge import Chooser

BALANCE_EVERY = 100


class Compressor:
    """Decides, fades, removes and merges while the network trains.

    Make it, call :meth:`step` after every ``optimizer.step()`` and :meth:`finish` after the last. The graph module
    is changed in place, so the loop goes on using it.

    Args:
        gm: a traced network; with pairs inserted (:func:`edp_fx.insert`) where ranks may go. Its weights are those of
            the model it was traced from: trace ``copy.deepcopy(model)`` to keep that one.
        example_inputs: a tensor or tuple of tensors the network takes.
        method: how to compress: a :class:`~edp_fx.Method`, the name of a preset, or None for the default one.
        optimizer: any torch optimiser over ``gm``'s parameters; its state follows the weights.
        total_steps: optimiser steps of the whole run. 0: all is decided in :meth:`finish`.
        runtime: what measures networks for a budget of latency; the budget's device where None, if this machine has it.
            What is measured corrects the choice.
        changes: fields of the method to change, ``budget=Budget(macs=0.4)`` or ``macs=0.4`` for instance.

    Attributes:
        method: as it is carried out; its ``kinds`` are those that may go.
        refused: what was left alone, each with its ``node`` and ``reason``.
        events: every decision and removal.
        removals: what was removed so far, for a run that is taken up again.
        progress: what may go, what fades and what must stay.

    Raises:
        BudgetError: the budget cannot be reached (says the least that can), or an option is wrong.
        LoweringError: the runtime cannot run the network.
        TraceError: ``gm`` is no graph.
        TrainingError: the optimiser is not of this network.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        example_inputs: Any,
        method: Method | str | None = None,
        *,
        optimizer: Optimizer | None = None,
        total_steps: int = 0,
        runtime: Runtime | None = None,
        **changes: Any,
    ) -> None:
        check_given(gm, optimizer, total_steps)
        method = Method.of(method, **changes)
        if method.policy == "budget" and method.budget is None:
            raise BudgetError("the policy 'budget' needs a budget, for example Budget(macs=0.4)")
        self.example_inputs = normalize(example_inputs)
        self.optimizer = optimizer
        self.importance = make_importance(method.importance)
        check_ready(self.importance)
        self.schedule = method.schedule(total_steps, gpu=any(one.is_cuda for one in gm.parameters()))
        offer = offer_kinds(method, self.importance, total_steps)
        weighed = method.policy == "budget" and self.importance.gradients and total_steps > 0
        metric = method.budget.metric if method.budget else "macs"
        device, batch = device_of(method.budget, runtime)
        self._scope = Scope(metric, offer.kinds, method.allow_inexact, method.align, weighed, device, batch)
        self.count = 0
        self.events: list[dict[str, Any]] = []
        self.max_rel_diff = 0.0
        self.removals: list[dict[str, Any]] = []
        self._done = self._finished = False

        self._network = Network(gm)
        self.dense, self.target = 0.0, 0.0
        self.timing: Timing | None = None
        if device is not None and method.budget is not None:
            self.timing = Timing(method.budget, device, runtime, self._network.dense(), self.example_inputs)
        least = self._start(method)
        if method.budget is not None:
            if least > self.target and offer.in_need and any(isinstance(module, Pair) for module in gm.modules()):
                offer = offer.extended()
                self._scope = replace(self._scope, kinds=offer.kinds)
                least = self._start(method)
            while least > self.target and self._scope.align > 1:
                self._scope = replace(self._scope, align=self._scope.align // 2)
                least = self._start(method)
            check_reachable(method.budget, self.dense, least, self.target)
        self.method = method.changed(kinds=offer.names, align=self._scope.align)
        self.refused = [*refusals(gm, self.progress.candidates, offer.names, method.allow_inexact), *offer.refusals]
        if self._scope.align < method.align:
            reason = f"{method.align} cannot reach the budget; multiples of {self._scope.align} can"
            self.refused.append({"node": "align", "reason": reason})
        self._shapes = layer_shapes(gm)
        self._now = float(self.progress.candidates.cost.total({}))
        self._network.fuse()
        self._bind()
        if self.timing is not None and self.timing.measures and total_steps > 0:
            self._rehearse(self.timing)
        if optimizer is not None:
            self._undecayed = without_decay(optimizer)
            optimizer.register_step_pre_hook(self._before_optimizer_step)

    # -- what the network looks like now ------------------------------------------------------------------

    def _start(self, method: Method) -> float:
        """Analyse the network as it came; returns the least it can cost."""
        candidates = Candidates(self.gm, self.example_inputs, self._scope, check=True)
        self.progress = Progress.start(candidates, self.schedule, method.floor)
        self.dense = float(candidates.cost.dense)
        if method.budget is None:
            return 0.0
        self.target = self.timing.target(self.dense) if self.timing else method.budget.target(self.dense)
        return self.progress.lower_floors(self.target)

    def _bind(self) -> None:
        self._parameters = dict(self.gm.named_parameters())
        by_penalties = self.method.policy == "lambda"
        self._proximal = Proximal(self.elements, self.method.strength) if by_penalties else None

    @property
    def gm(self) -> fx.GraphModule:
        """The network."""
        return self._network.gm

    @property
    def budget(self) -> Budget | None:
        """What the result may cost."""
        return self.method.budget

    @property
    def elements(self) -> Elements:
        """The flat index of what may go."""
        return self.progress.elements

    @property
    def metric(self) -> str:
        """What is counted: ``macs``, ``params`` or ``latency``."""
        return self._scope.metric

    @property
    def now(self) -> float:
        """Cost of the network without what is already exactly zero, in the budget's unit."""
        return self._now

    @property
    def macs(self) -> float:
        """The same as a share of the dense network's cost."""
        return self._now / self.dense

    @property
    def done(self) -> bool:
        """Whether the network has reached its final shape; what follows is plain training."""
        return self._done

    def layers(self) -> list[dict[str, Any]]:
        """Outputs, inputs and rank of every layer at the start and now."""
        return changes(self._shapes, layer_shapes(self.gm))

    def follow(self, module: fx.GraphModule) -> None:
        """Let a copy of the network, such as an EMA's, change shape along with it."""
        self._network.follow(module)

    # -- one step -----------------------------------------------------------------------------------------

    def _before_optimizer_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._done and self._proximal is None and self.count < self.schedule.last:
            with torch.no_grad():
                self.importance.accumulate(Context(self.elements, self._parameters))

    @torch.no_grad()
    def step(self) -> bool:
        """To be called after every ``optimizer.step()``.

        Returns:
            Whether the network changed shape, so that wrappers around it (DDP) must be made anew.
        """
        self.count += 1
        if self._done:
            return False
        if self._proximal is not None:
            self._shrink_norms(self._proximal)
        elif self.schedule.decides(self.count):
            self._decide(final=self.count == self.schedule.last)
        if self.progress.fading.apply(self._parameters, self.count):
            self._now = self.progress.cost(self.count)
        if self.schedule.removes_at(self.count):
            return self._remove(final=self._proximal is None and self.count >= self.schedule.stop)
        return False

    def _decide(self, *, final: bool, rounds: int = 1) -> None:
        if self.importance.gradients and self.importance.total is None:
            if not final:  # a loss scaler skipped the steps
                return
            if self.now > self.target and not self.events:
                raise unweighed(self.count)
        started = time.perf_counter()
        fading = self.progress.fading
        alive = fading.kept
        progress = 1.0 if final else self.schedule.progress(self.count)
        goal = self.dense + (self.target - self.dense) * progress
        context = Context(self.elements, self._parameters, coefficient_gains(self.gm))
        scores = agreed(self.importance.scores(context), next(iter(self._parameters.values())).device)
        # at the end the budget is filled up, with what is fading but not yet gone, too
        fill_from = fading.living(self.count) if final else None

        def select(goal: float) -> NDArray[np.bool_]:
            end = min(goal, self.target) if self.timing is None else goal
            selector = self.progress.selector()
            return selector.choose(alive, scores, goal, fill_from=fill_from, rounds=rounds, end=end)

        if final and self.timing is not None:
            left, self.target = self._corrected(self.timing, select, goal)
        else:
            left = select(goal)
        fading.remove(alive & ~left, self.count)
        fading.keep(left)
        self.importance.reset()
        self.events.append(
            {
                "event": "decision",
                "step": self.count,
                "goal": goal / self.dense,
                "removed": int((alive & ~left).sum()),
                "left": int(left.sum()),
                "seconds": round(time.perf_counter() - started, 4),
            }
        )

    def _rehearse(self, timing: Timing) -> None:
        """Measure what the budget might leave, chosen by norm, so that the run aims at what will measure right."""
        context = Context(self.elements, self._parameters, coefficient_gains(self.gm))
        scores = agreed(Norm().scores(context), next(iter(self._parameters.values())).device)
        everything = np.ones(self.elements.n, dtype=bool)

        def select(goal: float) -> NDArray[np.bool_]:
            return self.progress.selector().choose(everything, scores, goal, fill_from=everything)

        _, self.target = self._corrected(timing, select, self.target, tries=2)

    def _corrected(
        self, timing: Timing, select: Callable[[float], NDArray[np.bool_]], goal: float, tries: int = TRIES
    ) -> tuple[NDArray[np.bool_], float]:
        """What is left where the network measures what is asked, and the predicted cost that it takes."""
        candidates, selector = self.progress.candidates, self.progress.selector()

        def preview(left: NDArray[np.bool_]) -> fx.GraphModule:
            keep = self.elements.split(left)
            removed = {group: keep[group.id] for group in self.elements.groups if not keep[group.id].all()}
            return self._network.preview(candidates.graph, removed, candidates.work.keep_pair(keep))

        return timing.choose(select, preview, selector.total, goal, self.dense, selector.least(), tries)

    def _shrink_norms(self, proximal: Proximal) -> None:
        lr = max(group["lr"] for group in self.optimizer.param_groups) if self.optimizer else 1.0
        ramp = min(1.0, self.count / self.schedule.start)
        norms = proximal.step(self._parameters, lr * ramp).cpu().numpy()
        if self.count % BALANCE_EVERY == 0:
            balance(self.gm, self.optimizer)
        fading = self.progress.fading
        zero = (norms == 0) & fading.kept
        if zero.any():
            # at least the floor of every group stays, so that no layer disconnects
            removable = self.progress.selector().within_floors(zero, fading.kept)
            fading.remove(removable, self.count - self.schedule.fade)
            self._now = self.progress.cost(self.count)

    # -- changing shape -----------------------------------------------------------------------------------

    def _remove(self, *, final: bool) -> bool:
        """Take what is zero out of the network; at the end of the schedule also merge the pairs that are cheaper
        merged."""
        living = self.progress.fading.living(self.count)
        if living.all() and not final:
            return False
        keep = self.elements.split(living)
        started = time.perf_counter()
        self.reduce(keep, merged=final, compared=True)
        difference = self._network.difference
        self.max_rel_diff = max(self.max_rel_diff, difference)
        self.events.append(
            {
                "event": "shrink",
                "step": self.count,
                "cost": self.macs,
                "merged": final,
                "max_rel_diff": difference,
                "seconds": round(time.perf_counter() - started, 4),
            }
        )
        return True

    def reduce(
        self, keep: Keep, *, merged: bool, as_two: Collection[str] | None = None, compared: bool = False
    ) -> None:
        """Take out what ``keep`` leaves out, of the network and its followers; optimiser and records come along.

        Args:
            keep: group id -> which elements stay.
            merged: also merge the pairs that are cheaper merged; the network has its final shape then.
            as_two: names of the pairs that stay two layers, where that was decided before.
            compared: what goes is zero, so the outputs must stay.

        Raises:
            RemovalError: they do not; the network is as it was.
        """
        before = {name: (parameter, parameter.shape) for name, parameter in self._parameters.items()}
        now = self.progress.selector().total(self.elements.joined(keep))
        candidates = self.progress.candidates
        keep_pair: Chooser | None = None
        if merged:
            keep_pair = candidates.work.keep_pair(keep) if as_two is None else lambda name, _: name in as_two
        removed = {group: keep[group.id] for group in self.elements.groups if not keep[group.id].all()}
        inputs = normalize(self.example_inputs, self.gm) if compared else None
        with self._network.reduced(candidates.graph, removed, keep_pair, inputs) as applied:
            if merged:
                propagate(self.gm, self.example_inputs)
                self._done, self._now = True, now
            else:
                found = Candidates(self.gm, self.example_inputs, self._scope)
                self.progress, origin = self.progress.carried(found, applied)
                self.importance.carry(origin)
                self._now = self.progress.cost(self.count)
        self._bind()
        if self.optimizer is not None:
            carry_state(self.optimizer, before, self._parameters, applied, self._undecayed)
            self.optimizer.zero_grad(set_to_none=True)
        masks = {str(key): torch.from_numpy(mask.copy()) for key, mask in keep.items()}
        pairs = [name for name, module in self.gm.named_modules() if isinstance(module, Pair)]
        self.removals.append({"keep": masks, "merged": merged, "as_two": pairs if merged else None})

    @torch.no_grad()
    def finish(self) -> fx.GraphModule:
        """End the run: what is still missing to the budget is removed at once, pairs that pay are merged.

        Returns:
            The compact network: plain layers and explicit pairs of layers, in the mode it was in.

        Raises:
            TrainingError: the run is not over, or no gradient was seen by which to choose.
        """
        if self._finished:
            return self.gm
        if not self._done:
            if self._proximal is None:
                check_over(self.count, self.schedule.stop, self.schedule.total)
            if self._proximal is None and self.count < self.schedule.last:
                self._decide(final=True, rounds=20)
            fading = self.progress.fading
            self.count = max(self.count, int(fading.since.max(initial=0)) + self.schedule.fade)
            fading.apply(self._parameters, self.count, at_once=True)
            self._remove(final=True)
        self._network.unfuse()
        self._finished = True
        return self.gm

    # -- resuming -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to resume, as tensors, numbers and strings."""
        return state_of(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Bring a fresh Compressor on the same network to the saved shape.

        Call it first, then load the model's and the optimiser's state.

        Raises:
            CheckpointError: the state belongs to another network, budget or schedule.
        """
        take_up(self, state)
        if not self._done:
            self._now = self.progress.cost(self.count)
