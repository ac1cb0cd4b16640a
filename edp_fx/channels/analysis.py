"""What passes, cost models and the compressor read of an analysis: what a keep-set leaves of each tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from edp_fx.channels.calls import Calls
from edp_fx.channels.counts import AxisCount, CostSite, Keep, shares_of
from edp_fx.channels.groups import Group
from edp_fx.channels.labels import Labels
from edp_fx.channels.views import View
from edp_fx.errors import AnalysisError


@dataclass(eq=False)
class Analysis:
    """The views of one graph and the groups found in them, numbered in order.

    Args:
        views: one, or two where heads are looked at in both ways.
        groups: their ids are their places.
    """

    views: tuple[View, ...]
    groups: list[Group]

    def __post_init__(self) -> None:
        self.groups = [replace(group, shares=self._shares_of) for group in self.groups]

    def group(self, group_id: int) -> Group:
        """The group with this id. Raises AnalysisError where there is none."""
        if not 0 <= group_id < len(self.groups):
            raise AnalysisError(f"there is no group {group_id}: ids run from 0 to {len(self.groups) - 1}")
        return self.groups[group_id]

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
    def parameter_sizes(self) -> dict[str, dict[int, int]]:
        """Parameter name -> labelled axis -> its length before pruning."""
        parameters = self.views[0].sweep.parameters
        return {name: {axis: atoms.size for axis, atoms in axes.items()} for name, axes in parameters.items()}

    @cached_property
    def node_shapes(self) -> dict[str, list[tuple[int, ...]]]:
        """Node name -> the shape of each tensor it gives on the example inputs, before pruning."""
        return {node: [shape for shape, _ in tensors] for node, tensors in self.views[0].sweep.outputs.items()}

    @property
    def not_run(self) -> dict[str, str]:
        """Nodes that do not run without data -> why; nothing they touch can be pruned."""
        return self.views[0].sweep.not_run

    @property
    def node_scalars(self) -> dict[str, Any]:
        """Node name -> the number, or tuple of numbers, it gives on the example inputs, before pruning."""
        return self.views[0].sweep.scalars

    @cached_property
    def sites(self) -> list[CostSite]:
        """Every multiply-accumulate operation, its cost as a function of the keep-set."""
        view = self.views[0]
        result = []
        for site in view.ledger.sites:
            axes = tuple(self._shared_count(view.component[atoms]) for atoms in site.axes)
            result.append(CostSite(site.where.node, site.where.op, site.constant, axes))
        return result

    @property
    def calls(self) -> Calls:
        """Every operation as it ran, and the values between them."""
        return self.views[0].sweep.calls

    def value_size(self, number: int) -> tuple[float, tuple[AxisCount, ...]]:
        """How many numbers a value of :attr:`calls` holds: a constant times the alive indices of each axis."""
        view, value = self.views[0], self.calls.values[number]
        constant, axes = float(math.prod(value.shape)), []
        for factor in value.labels:
            if factor.atoms.size:
                constant /= factor.atoms.size
                axes.append(self._shared_count(view.component[factor.atoms.ravel()]))
        return constant, tuple(axes)

    def _shared_count(self, components: np.ndarray) -> AxisCount:
        """The same object for the same indices: values that follow one another have their axes in common."""
        key = components.tobytes()
        if key not in self._counts:
            self._counts[key] = self._axis_count(components, self._owners)
        return self._counts[key]

    @cached_property
    def _counts(self) -> dict[bytes, AxisCount]:
        return {}

    @cached_property
    def _owners(self) -> tuple[np.ndarray, np.ndarray]:
        return self._owner(0)

    def parameter_axes(self) -> dict[str, dict[int, AxisCount]]:
        """Parameter name -> axis -> its length as a function of the keep-set."""
        view, owner = self.views[0], self._owner(0)
        return {
            name: {axis: self._axis_count(view.component[atoms], owner) for axis, atoms in axes.items()}
            for name, axes in view.sweep.parameters.items()
        }

    def parameter_counts(self) -> dict[str, tuple[float, tuple[AxisCount, ...]]]:
        """Parameter or buffer name -> the axes that carry labels, and the numbers in it for each index along them."""
        whole = self.views[0].sweep.sizes
        return {
            name: (
                float(np.prod([size for axis, size in enumerate(whole[name]) if axis not in axes])),
                tuple(axes.values()),
            )
            for name, axes in self.parameter_axes().items()
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
            weights[one] = np.bincount(elements, minlength=self.groups[one].size).astype(np.float64)
        return AxisCount(float((groups < 0).sum()), weights)

    def _shares_of(self, group_id: int) -> tuple[float, float]:
        macs, params = self._shares
        return macs.get(group_id, 0.0), params.get(group_id, 0.0)

    @cached_property
    def _shares(self) -> tuple[dict[int, float], dict[int, float]]:
        """Share of the dense network's MACs and parameters that hangs on each prunable group."""
        sizes = list(self.parameter_counts().values())
        return shares_of([(site.constant, site.axes) for site in self.sites]), shares_of(sizes)


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
