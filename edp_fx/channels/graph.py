"""``ChannelGraph``: the result of the analysis, to look at and to prune by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import networkx as nx
import numpy as np
from torch import fx

from edp_fx.channels.groups import Group, View
from edp_fx.channels.labels import Labels
from edp_fx.errors import AnalysisError

Keep = Mapping[int, np.ndarray]


@dataclass(frozen=True, eq=False)
class AxisCount:
    """How many indices of an axis are alive: ``fixed`` plus, per group, the multiplicity of each kept element."""

    fixed: float
    weights: dict[int, np.ndarray]

    @cached_property
    def sums(self) -> dict[int, float]:
        """Indices of each group."""
        return {group: float(weight.sum()) for group, weight in self.weights.items()}

    @cached_property
    def whole(self) -> float:
        """Indices with nothing removed."""
        return self.fixed + sum(self.sums.values())

    def alive(self, keep: Keep) -> float:
        """Indices alive under ``keep`` (groups not named are whole)."""
        total = self.whole
        for group, weight in self.weights.items() if keep else ():
            kept = keep.get(group)
            if kept is not None:
                total += float(weight @ kept) - self.sums[group]
        return total

    def without(self, group: int) -> float:
        """Indices left when all of one group are gone."""
        return self.whole - self.sums.get(group, 0.0)


@dataclass(frozen=True, eq=False)
class CostSite:
    """One operation's multiply-accumulates: ``constant`` times the alive indices of each axis, for the whole batch."""

    node: str
    op: str
    constant: float
    axes: tuple[AxisCount, ...]

    def macs(self, keep: Keep) -> float:
        """Multiply-accumulates under ``keep``."""
        result = self.constant
        for axis in self.axes:
            result *= axis.alive(keep)
        return result


@dataclass(eq=False)
class ChannelGraph:
    """Groups of channels that go together, found by :func:`edp_fx.analyze`.

    A *keep-set* maps group ids to boolean arrays of ``group.size`` (True = kept); groups not named stay whole.
    """

    gm: fx.GraphModule
    example_inputs: tuple[Any, ...]
    views: tuple[View, ...]
    groups: list[Group]
    _by_id: dict[int, Group] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.groups = [replace(group, shares=self._shares_of) for group in self.groups]
        self._by_id = {group.id: group for group in self.groups}

    # -- looking things up ---------------------------------------------------------------------------------

    def group(self, group_id: int) -> Group:
        """The group with this id. Raises AnalysisError where there is none."""
        if group_id not in self._by_id:
            raise AnalysisError(f"there is no group {group_id}: ids run from 0 to {len(self.groups) - 1}")
        return self._by_id[group_id]

    @property
    def prunable(self) -> list[Group]:
        """Groups of which something can be removed."""
        return [group for group in self.groups if group.prunable]

    @property
    def unknown_ops(self) -> dict[str, str]:
        """Operations without a rule (everything they touch is frozen) -> the first node that has one."""
        return {op: where.node for view in self.views for op, where in view.ledger.unknown_ops.items()}

    @cached_property
    def output_groups(self) -> dict[str, list[Group]]:
        """Layer name -> the groups its output channels belong to."""
        found: dict[str, list[Group]] = {}
        for group in self.groups:
            for layer in group.producers:
                found.setdefault(layer, []).append(group)
        return found

    def explain(self, name: str) -> str:
        """A sentence on why the layer ``name`` is or is not prunable and with whom it is tied."""
        from edp_fx.channels.describe import explain

        return explain(self, name)

    def summary(self) -> dict[str, Any]:
        """Counts and shares, see :func:`edp_fx.channels.describe.summary`."""
        from edp_fx.channels.describe import summary

        return summary(self)

    def table(self, tablefmt: str = "simple") -> str:
        """One row a group, as text in any of tabulate's formats."""
        from edp_fx.channels.describe import table

        return table(self, tablefmt)

    def to_networkx(self) -> nx.Graph:
        """Layers and groups as nodes; an edge says in which role, and by which operations, they are tied."""
        from edp_fx.channels.export import to_networkx

        return to_networkx(self)

    def to_json(self) -> dict[str, Any]:
        """Everything, in plain lists and dicts."""
        from edp_fx.channels.export import to_json

        return to_json(self)

    # -- what a keep-set means -----------------------------------------------------------------------------

    def check_keep(self, keep: Keep) -> dict[int, np.ndarray]:
        """A validated keep-set of boolean arrays; AnalysisError names the group that is wrong."""
        checked = {}
        for group_id, kept in keep.items():
            group = self.group(group_id)
            array = np.asarray(kept, dtype=bool)
            if array.shape != (group.size,):
                raise AnalysisError(
                    f"group {group_id} ({group.name}) has {group.size} elements, the keep-set {array.shape}"
                )
            if array.all():
                continue
            if not group.prunable:
                raise AnalysisError(f"group {group_id} ({group.name}) cannot be pruned: {group.frozen}")
            if not array.any():
                raise AnalysisError(f"group {group_id} ({group.name}): keep at least one of its {group.size} elements")
            checked[group_id] = array
        return checked

    def alive_components(self, keep: Keep) -> list[np.ndarray]:
        """Per view, which components stay."""
        alive = [np.ones(int(view.component.max()) + 1, dtype=bool) for view in self.views]
        for group_id, kept in keep.items():
            group = self.group(group_id)
            alive[group.view][group.components[~np.asarray(kept)]] = False
        return alive

    def _alive_atoms(self, keep: Keep) -> list[np.ndarray]:
        """Per view, which atoms stay."""
        return [living[view.component] for view, living in zip(self.views, self.alive_components(keep))]

    def parameter_keep(self, keep: Keep) -> dict[str, dict[int, np.ndarray]]:
        """Parameter name -> axis -> indices that stay, for every axis that loses something."""
        alive = self._alive_atoms(keep)
        result: dict[str, dict[int, np.ndarray]] = {}
        for name, axes in self.views[0].sweep.parameters.items():
            for axis in axes:
                masks = [living[view.sweep.parameters[name][axis]] for view, living in zip(self.views, alive)]
                mask = masks[0] if len(masks) == 1 else np.logical_and.reduce(masks)
                if not mask.all():
                    result.setdefault(name, {})[axis] = np.flatnonzero(mask)
        return result

    def node_masks(self, keep: Keep) -> dict[str, list[dict[int, np.ndarray]]]:
        """Node name -> for each tensor it gives, axis -> mask of the indices that stay, for axes that lose some."""
        alive = self._alive_atoms(keep)
        result: dict[str, list[dict[int, np.ndarray]]] = {}
        for node, tensors in self.views[0].sweep.outputs.items():
            found: list[dict[int, np.ndarray]] = []
            for k in range(len(tensors)):
                masks: dict[int, np.ndarray] = {}
                for view, living in zip(self.views, alive):
                    _mask_axes(view.sweep.outputs[node][k][1], living, masks)
                found.append(masks)
            result[node] = found
        return result

    @property
    def node_shapes(self) -> dict[str, list[tuple[int, ...]]]:
        """Node name -> the shape of each tensor it gives on the example inputs, before pruning."""
        return {node: [shape for shape, _ in tensors] for node, tensors in self.views[0].sweep.outputs.items()}

    @property
    def node_scalars(self) -> dict[str, Any]:
        """Node name -> the number it gives on the example inputs, before pruning."""
        return self.views[0].sweep.scalars

    @cached_property
    def sites(self) -> list[CostSite]:
        """Every multiply-accumulate operation, its cost as a function of the keep-set."""
        view = self.views[0]
        owner = self._owner(0)
        result = []
        for site in view.ledger.sites:
            axes = tuple(self._axis_count(view.component[atoms], owner) for atoms in site.axes)
            result.append(CostSite(site.where.node, site.where.op, site.constant, axes))
        return result

    def parameter_axes(self) -> dict[str, dict[int, AxisCount]]:
        """Parameter name -> axis -> its length as a function of the keep-set."""
        view, owner = self.views[0], self._owner(0)
        return {
            name: {axis: self._axis_count(view.component[atoms], owner) for axis, atoms in axes.items()}
            for name, axes in view.sweep.parameters.items()
        }

    def _owner(self, view: int) -> tuple[np.ndarray, np.ndarray]:
        count = int(self.views[view].component.max()) + 1
        group_of, element_of = np.full(count, -1, dtype=np.int64), np.zeros(count, dtype=np.int64)
        for group in self.groups:
            if group.view == view and group.prunable:
                group_of[group.components] = group.id
                element_of[group.components] = np.arange(group.size)
        return group_of, element_of

    def _axis_count(self, components: np.ndarray, owner: tuple[np.ndarray, np.ndarray]) -> AxisCount:
        group_of, element_of = owner
        groups = group_of[components]
        weights = {}
        for one in sorted(set(groups[groups >= 0].tolist())):
            elements = element_of[components[groups == one]]
            weights[one] = np.bincount(elements, minlength=self._by_id[one].size).astype(np.float64)
        return AxisCount(float((groups < 0).sum()), weights)

    def _shares_of(self, group_id: int) -> tuple[float, float]:
        macs, params = self._shares
        return macs.get(group_id, 0.0), params.get(group_id, 0.0)

    @cached_property
    def _shares(self) -> tuple[dict[int, float], dict[int, float]]:
        """Share of the dense network's MACs and parameters that hangs on each prunable group."""
        sizes = [(1.0, tuple(axes.values())) for axes in self.parameter_axes().values()]
        return _shares([(site.constant, site.axes) for site in self.sites]), _shares(sizes)


def _shares(terms: list[tuple[float, tuple[AxisCount, ...]]]) -> dict[int, float]:
    """Group -> the share of the sum of products that vanishes with it."""
    lost: dict[int, float] = {}
    total = 0.0
    for constant, axes in terms:
        full = constant * math.prod(axis.whole for axis in axes)
        total += full
        for group in {g for axis in axes for g in axis.weights}:
            lost[group] = lost.get(group, 0.0) + full - constant * math.prod(axis.without(group) for axis in axes)
    return {group: value / total for group, value in lost.items()} if total else {}


def _mask_axes(labels: Labels, alive: np.ndarray, masks: dict[int, np.ndarray]) -> None:
    """Fold into ``masks`` which indices of each axis stay. A factor varies along one axis once ties are resolved."""
    for factor in labels:
        living = alive[factor.atoms]
        if living.all():
            continue
        axes = factor.axes
        for axis in axes:
            other = tuple([a for a in axes if a != axis])
            along = living.all(axis=other, keepdims=True) if other else living
            if not along.all() and (not other or (living.any(axis=other, keepdims=True) == along).all()):
                along = along.ravel()
                masks[axis] = masks[axis] & along if axis in masks else along


__all__ = ["AxisCount", "ChannelGraph", "CostSite", "Keep"]
