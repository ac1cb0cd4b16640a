"""The part that goes into a training loop: one run that ends at the budget."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.optim import Optimizer

from edp_fx.compressor.budget import check_reachable
from edp_fx.compressor.elements import Elements, Keep
from edp_fx.compressor.factors import coefficient_gains
from edp_fx.compressor.fading import NEVER, Fading
from edp_fx.compressor.importance import Context, agreed, make_importance
from edp_fx.compressor.kinds import offer_kinds
from edp_fx.compressor.method import Method
from edp_fx.compressor.optimizer import carry_state, without_decay
from edp_fx.compressor.proximal import Proximal, balance
from edp_fx.compressor.record import changes, layer_shapes, refusals
from edp_fx.compressor.resuming import belongs_to_the_network, check_elements, check_state
from edp_fx.compressor.selection import Selector
from edp_fx.compressor.structure import KeptIndices, Modes, explicit, fuse, outputs, relative_difference, reshape
from edp_fx.compressor.survey import Survey, Wanted
from edp_fx.errors import BudgetError
from edp_fx.frontend import propagate
from edp_fx.inputs import normalize
from edp_fx.latency import LatencyTable
from edp_fx.pairs import Pair
from edp_fx.passes.merge import Chooser

BALANCE_EVERY = 100


class Compressor:
    """Decides, fades, removes and merges while the network trains.

    Make it, call :meth:`step` after every ``optimizer.step()`` and :meth:`finish` after the last. The graph module
    is changed in place, so the loop goes on using it.

    Args:
        gm: a traced network; with pairs inserted (:func:`edp_fx.insert`) where ranks may go.
        example_inputs: a tensor or tuple of tensors the network takes.
        method: how to compress: a :class:`~edp_fx.Method`, the name of a preset, or None for the default one.
        optimizer: any torch optimiser over ``gm``'s parameters; its state follows the weights.
        total_steps: optimiser steps of the whole run. 0: all is decided in :meth:`finish`.
        latency_table: measures layers for a budget of latency; ``LatencyTable()`` where None.
        changes: fields of the method to change, ``budget=Budget(macs=0.4)`` or ``macs=0.4`` for instance.

    Attributes:
        method: as it is carried out; its ``kinds`` are those that may go.
        refused: what was left alone, each with its ``node`` and ``reason``.
        events: every decision and removal.

    Raises:
        BudgetError: the budget cannot be reached (says the least that can), or an option is wrong.
        LoweringError: the latency table's runtime cannot run the network.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        example_inputs: Any,
        method: Method | str | None = None,
        *,
        optimizer: Optimizer | None = None,
        total_steps: int = 0,
        latency_table: LatencyTable | None = None,
        **changes: Any,
    ) -> None:
        method = Method.of(method, **changes)
        if method.policy == "budget" and method.budget is None:
            raise BudgetError("the policy 'budget' needs a budget, for example Budget(macs=0.4)")
        self.gm = gm
        self.example_inputs = normalize(example_inputs)
        self.budget = method.budget
        self.policy = method.policy
        self.optimizer = optimizer
        self.importance = make_importance(method.importance)
        self.schedule = method.schedule(total_steps, gpu=any(one.is_cuda for one in gm.parameters()))
        offer = offer_kinds(method, self.importance, total_steps)
        trained = self.policy == "budget" and self.importance.gradients and total_steps > 0
        self._wanted = Wanted(self.metric, offer.kinds, method.allow_inexact, method.align, latency_table, trained)
        self.count = 0
        self.events: list[dict[str, Any]] = []
        self.max_rel_diff = 0.0
        self._history: list[dict[str, Any]] = []
        self._followers: list[fx.GraphModule] = []
        self._compact = False
        self._finished = False

        self._form = explicit(self.gm)
        self.dense, self.target = 0.0, 0.0
        self._look(method.floor)
        if self.budget is not None:
            if self._selector().least() > self.target and offer.in_need and self._has_pairs:
                offer = offer.extended()
                self._wanted = replace(self._wanted, kinds=offer.kinds)
                self._look(method.floor)
            check_reachable(self.budget, self.dense, self._selector().least())
        self.method = method.changed(kinds=offer.kinds)
        self.refused = [*refusals(self.gm, self.survey, offer.kinds, method.allow_inexact), *offer.left_out]
        self._shapes = layer_shapes(self.gm)
        self.fading = Fading(self.elements, self.schedule)
        self._now = float(self.survey.cost.total({}))
        fuse(self.gm)
        self._bind()
        if optimizer is not None:
            self._undecayed = without_decay(optimizer)
            optimizer.register_step_pre_hook(self._before_optimizer_step)

    # -- what the network looks like now ------------------------------------------------------------------

    def _bind(self) -> None:
        self._parameters = dict(self.gm.named_parameters())
        self._proximal = Proximal(self.elements, self.method.strength) if self.policy == "lambda" else None

    def _look(self, floor: float) -> None:
        """Analyse the network as it came; floors are lowered where the budget needs it."""
        self.survey = Survey(self.gm, self.example_inputs, self._wanted)
        self.floors = self.survey.floors(np.ceil(floor * self.elements.sizes))
        self._sizes = self.elements.sizes.astype(float)
        self.dense = float(self.survey.cost.dense)
        if self.budget is None:
            return
        self.target = self.budget.target(self.dense)
        while self._selector().least() > self.target:
            lower = self.survey.floors(self.floors // 2)
            if (lower == self.floors).all():
                break
            self.floors = lower

    @property
    def _has_pairs(self) -> bool:
        return any(isinstance(module, Pair) for module in self.gm.modules())

    @property
    def elements(self) -> Elements:
        """The flat index of what may go."""
        return self.survey.elements

    def _selector(self) -> Selector:
        return self.survey.selector(self.floors, self._sizes)

    def _context(self) -> Context:
        gains = coefficient_gains(self.gm)
        return Context(self.elements, self._parameters, gains)

    @property
    def metric(self) -> str:
        """What is counted: ``macs``, ``params`` or ``latency``."""
        return self.budget.metric if self.budget else "macs"

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
        return self._compact

    def layers(self) -> list[dict[str, Any]]:
        """Outputs, inputs and rank of every layer at the start and now."""
        return changes(self._shapes, layer_shapes(self.gm))

    def follow(self, module: fx.GraphModule) -> None:
        """Let a copy of the network, such as an EMA's, change shape along with it."""
        module.graph = copy.deepcopy(self._form)
        self._followers.append(fuse(module))

    # -- one step -----------------------------------------------------------------------------------------

    def _before_optimizer_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._compact and self.policy == "budget" and self.count < self.schedule.last:
            with torch.no_grad():
                self.importance.accumulate(Context(self.elements, self._parameters))

    @torch.no_grad()
    def step(self) -> bool:
        """To be called after every ``optimizer.step()``.

        Returns:
            Whether the network changed shape, so that wrappers around it (DDP) must be made anew.
        """
        self.count += 1
        if self._compact:
            return False
        if self._proximal is not None:
            self._shrink_norms(self._proximal)
        elif self.schedule.decides(self.count):
            self._decide(final=self.count == self.schedule.last)
        if self.fading.apply(self._parameters, self.count):
            self._now = self._selector().total(self.fading.living(self.count))
        if self.schedule.removes_at(self.count):
            return self._shrink(final=self.policy == "budget" and self.count >= self.schedule.stop)
        return False

    def _decide(self, *, final: bool, rounds: int = 1) -> None:
        started = time.perf_counter()
        alive = self.fading.spared
        progress = 1.0 if final else self.schedule.progress(self.count)
        goal = self.dense + (self.target - self.dense) * progress
        scores = agreed(self.importance.scores(self._context()), next(iter(self._parameters.values())).device)
        # at the end the budget is filled up, with what is fading but not yet gone, too
        fill_from = self.fading.living(self.count) if final else None
        selector = self._selector()
        left = selector.choose(alive, scores, goal, fill_from=fill_from, rounds=rounds, end=self.target)
        self.fading.doom(alive & ~left, self.count)
        self.fading.spare(left)
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

    def _shrink_norms(self, proximal: Proximal) -> None:
        lr = max(group["lr"] for group in self.optimizer.param_groups) if self.optimizer else 1.0
        ramp = min(1.0, self.count / self.schedule.start)
        norms = proximal.step(self._parameters, lr * ramp).cpu().numpy()
        if self.count % BALANCE_EVERY == 0:
            balance(self.gm, self.optimizer)
        dead = (norms == 0) & self.fading.spared
        if dead.any():
            # at least the floor of every group stays, so that no layer disconnects
            removable = self._selector().within_floors(dead, self.fading.spared)
            self.fading.doom(removable, self.count - self.schedule.fade)
            self._now = self._selector().total(self.fading.living(self.count))

    # -- changing shape -----------------------------------------------------------------------------------

    def _shrink(self, *, final: bool) -> bool:
        """Remove the dead; at the end of the schedule also merge the pairs that are cheaper merged."""
        living = self.fading.living(self.count)
        if living.all() and not final:
            return False
        keep = self.elements.split(living)
        started = time.perf_counter()
        before = outputs(self.gm, self.example_inputs)
        self._reshape(keep, merged=final)
        difference = relative_difference(before, outputs(self.gm, self.example_inputs))
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

    def _reshape(self, keep: Keep, *, merged: bool, apart: Collection[str] | None = None) -> None:
        """Prune, and merge where asked, the network and its followers; optimiser and records come along.

        ``apart`` names the pairs that stay two layers where that was decided before.
        """
        before = {name: (parameter, parameter.shape) for name, parameter in self._parameters.items()}
        now = self._selector().total(self.elements.joined(keep))
        keep_pair: Chooser | None = None
        if merged:
            keep_pair = self.survey.work.keep_pair(keep) if apart is None else lambda name, _: name in apart
        dropped = [one for one in self.survey.branches if not keep[one.id].all()]
        gone = {node for one in dropped for node in one.nodes}
        separated = [one for one in self.survey.kernels if not keep[one.id].all() and one.nodes[0] not in gone]
        names = {one.name for one in separated}
        channels = {number: mask for number, mask in keep.items() if number >= 0}
        kept: KeptIndices = {}
        for network in (*self._followers, self.gm):
            modes = Modes(network)
            form = self._form if network is self.gm else copy.deepcopy(self._form)
            kept = reshape(network, form, self.survey.graph, channels, keep_pair, separated, dropped)
            if network is self.gm:
                self._form = self.gm.graph
                if merged:
                    propagate(self.gm, self.example_inputs)
                    self._compact, self._now = True, now
                else:
                    self._resurvey(kept, names)
            fuse(network)
            modes.restore(network)
        self._bind()
        if self.optimizer is not None:
            carry_state(self.optimizer, before, self._parameters, kept, names, self._undecayed)
            self.optimizer.zero_grad(set_to_none=True)
        masks = {str(key): torch.from_numpy(mask.copy()) for key, mask in keep.items()}
        pairs = [name for name, module in self.gm.named_modules() if isinstance(module, Pair)]
        self._history.append({"keep": masks, "merged": merged, "apart": pairs if merged else None})

    def _resurvey(self, kept: KeptIndices, separated: Collection[str]) -> None:
        """Analyse the pruned network and carry over what is known of its elements."""
        old, born, floors = self.elements, self.fading.born, self.floors
        self.survey = Survey(self.gm, self.example_inputs, self._wanted)
        origin = old.carried(self.elements, kept, separated)
        self.fading = Fading(self.elements, self.schedule, np.where(origin >= 0, np.append(born, NEVER)[origin], NEVER))
        first = np.append(old.group_of, -1)[origin[self.elements.offsets[:-1]]]
        self.floors = np.where(
            first >= 0,
            np.minimum(self.elements.sizes, np.append(floors, 1)[first]),
            self.survey.floors(np.zeros(len(first))),
        )
        self._sizes = np.where(first >= 0, np.append(self._sizes, 0)[first], self.elements.sizes)
        self.importance.carry(origin)
        self._now = self._selector().total(self.fading.living(self.count))

    @torch.no_grad()
    def finish(self) -> fx.GraphModule:
        """End the run: what is still missing to the budget is removed at once, pairs that pay are merged.

        Returns:
            The compact network: plain layers and explicit pairs of layers, in the mode it was in.
        """
        if self._finished:
            return self.gm
        if not self._compact:
            if self.policy == "budget" and self.count < self.schedule.last:
                self._decide(final=True, rounds=20)
            self.count = max(self.count, int(self.fading.born.max(initial=0)) + self.schedule.fade)
            self.fading.apply(self._parameters, self.count, at_once=True)
            self._shrink(final=True)
        modes = Modes(self.gm)
        self.gm.graph = self._form
        modes.restore(self.gm)
        self._finished = True
        return self.gm

    # -- resuming -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to resume, as tensors, numbers and strings."""
        return {
            "asked": self._asked(),
            "count": self.count,
            "history": self._history,
            "born": torch.from_numpy(self.fading.born.copy()),
            "floors": torch.from_numpy(self.floors.copy()),
            "importance": self.importance.total,
            "events": json.dumps(self.events),
            "max_rel_diff": self.max_rel_diff,
            "dense": self.dense,
            "target": self.target,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Bring a fresh Compressor on the same network to the saved shape.

        Call it first, then load the model's and the optimiser's state.

        Raises:
            CheckpointError: the state belongs to another network, budget or schedule.
        """
        check_state(state, self._asked(), self.count)
        with belongs_to_the_network():
            for entry in state["history"]:
                keep = {int(key): mask.numpy() for key, mask in entry["keep"].items()}
                self._reshape(keep, merged=bool(entry["merged"]), apart=entry["apart"])
            check_elements(state, self.elements.n)
        self.count = int(state["count"])
        self.fading = Fading(self.elements, self.schedule, state["born"].numpy())
        self.floors = state["floors"].numpy().copy()
        self.importance.total = state["importance"]
        self.events = json.loads(state["events"])
        self.max_rel_diff = float(state["max_rel_diff"])
        self.dense, self.target = float(state["dense"]), float(state["target"])  # a latency is not measured alike twice
        self._now = self._selector().total(self.fading.living(self.count))

    def _asked(self) -> str:
        """What a state must have been made for to be loaded here."""
        return f"{self.method}, {self.schedule}"
