"""From components of channels to groups: what touches the same axes of the same parameters is removed together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
from scipy.sparse import coo_matrix
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from edp_fx.channels.atoms import Mark
from edp_fx.channels.groups import Group, Member
from edp_fx.channels.views import View
from edp_fx.pairs import Pair

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def find_groups(view: View, root: nn.Module, index: int = 0) -> list[Group]:
    """All groups of a view: components that touch the same parameter axes, ordered by their first parameter."""
    axes = [
        (name, axis, view.component[atoms]) for name, by in view.sweep.parameters.items() for axis, atoms in by.items()
    ]
    if not axes:
        return []
    signatures = _signatures([roots for _, _, roots in axes], view.frozen)
    roles = Roles(root)
    count = int(view.component.max()) + 1
    first = np.zeros(count, dtype=bool)
    first[[components[0] for components in signatures.values()]] = True
    ties, inexact, unzeroed = _marks(view, first)
    number = np.full(count, -1, dtype=np.int32)
    found: list[Group] = []
    for (is_frozen, signature), components in signatures.items():
        number[components] = np.arange(len(components))
        members = tuple(
            Member(name, axis, number[roots], roles.of(name, axis))
            for name, axis, roots in (axes[k] for k in np.frombuffer(signature, dtype=np.int32).tolist())
        )
        number[components] = -1
        frozen, is_output = None, False
        if is_frozen:
            mark = view.frozen[components[0]]
            is_output = mark.where.op == "output"
            frozen = f"{mark.reason} ({mark.where.op} at {mark.where.node})"
            if all(member.role == "other" for member in members):
                continue  # kernel positions, token positions: never channels
        elif all(member.role == "other" for member in members):
            frozen = "bare parameters that no layer makes or reads (tokens, positions)"
        elif len(components) == 1:
            frozen = "one indivisible unit: its layers can only go as a whole"
        reasons = tuple(dict.fromkeys(reason for one in components for reason in inexact.get(one, ())))
        name = next((m.layer or m.parameter for m in members if m.role == "producer"), members[0].parameter)
        group = Group(
            id=len(found),
            name=name,
            kind="rank" if roles.is_rank(members) else "channel",
            size=len(components),
            members=members,
            exact=not reasons,
            inexact_reasons=reasons,
            zero_propagates=not unzeroed[components].any(),
            frozen=frozen,
            is_output=is_output,
            ties=tuple(dict.fromkeys(ties.get(components[0], ()))),
            view=index,
            components=np.asarray(components),
        )
        found.append(group)
    return found


def _signatures(axes: list[np.ndarray], frozen: Mapping[int, Mark]) -> dict[tuple[bool, bytes], list[int]]:
    """Components by whether they are frozen and by the (int32) numbers of the axes they touch.

    Components are numbered by their first atoms, so those of a signature are in the order of its first axis.
    """
    roots = np.concatenate(axes)
    of_axis = np.repeat(np.arange(len(axes), dtype=np.int32), [one.size for one in axes])
    touching = coo_matrix((np.ones(roots.size, dtype=bool), (roots, of_axis))).tocsr()
    places, bounds = touching.indices.astype(np.int32, copy=False), touching.indptr
    components = np.flatnonzero(np.diff(bounds))
    is_frozen = np.zeros(touching.shape[0], dtype=bool)
    is_frozen[[one for one in frozen if one < is_frozen.size]] = True
    signatures: dict[tuple[bool, bytes], list[int]] = defaultdict(list)
    for run in np.split(components, 1 + np.flatnonzero(_changes(components, places, bounds, is_frozen))):
        if run.size:
            one = int(run[0])
            signatures[bool(is_frozen[one]), places[bounds[one] : bounds[one + 1]].tobytes()] += run.tolist()
    return signatures


def _changes(components: np.ndarray, places: np.ndarray, bounds: np.ndarray, is_frozen: np.ndarray) -> np.ndarray:
    """Whether each component but the first has another signature than the one before it, as few have."""
    before, after = components[:-1], components[1:]
    sizes = np.diff(bounds)
    changes: np.ndarray = (sizes[before] != sizes[after]) | (is_frozen[before] != is_frozen[after])
    same = np.flatnonzero(~changes)
    width = sizes[after[same]]
    offsets = np.arange(width.sum()) - np.repeat(np.cumsum(width) - width, width)
    differ = (
        places[np.repeat(bounds[before[same]], width) + offsets]
        != places[np.repeat(bounds[after[same]], width) + offsets]
    )
    changes[np.repeat(same, width)[differ]] = True
    return changes


def _marks(view: View, first: np.ndarray) -> tuple[dict[int, list[tuple[str, str]]], dict[int, list[str]], np.ndarray]:
    """Per component: what tied it, why it is inexact, and whether a consumer sees something other than 0.

    Ties are looked up for the components in the mask ``first`` only.
    """
    ties: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for tie in view.ledger.ties:
        roots = view.component[tie.left]
        for one in set(roots[first[roots]].tolist()):
            ties[one].append((tie.where.node, tie.where.op))
    inexact: dict[int, list[str]] = defaultdict(list)
    for mark in view.ledger.inexact:
        for one in set(view.component[mark.atoms].tolist()):
            inexact[one].append(f"{mark.reason} ({mark.where.node})")
    unzeroed = np.zeros(first.size, dtype=bool)
    for mark in view.ledger.unzeroed:
        unzeroed[view.component[mark.atoms]] = True
    return ties, inexact, unzeroed


class Roles:
    """What an axis of a parameter is to its layer, from the module that owns it."""

    def __init__(self, root: nn.Module) -> None:
        self._modules = dict(root.named_modules(remove_duplicate=False))

    def of(self, parameter: str, axis: int) -> str:
        """The role of ``axis`` of ``parameter``, see :class:`Member`."""
        path, _, leaf = parameter.rpartition(".")
        module = self._modules.get(path)
        if isinstance(module, (_ConvNd, nn.Linear)):
            if leaf != "weight":
                return "affine"
            out_axis = 1 if isinstance(module, _ConvTransposeNd) else 0
            if axis == out_axis:
                return "producer"
            return "consumer" if axis == 1 - out_axis else "other"
        return "affine" if isinstance(module, _NORMS) else "other"

    def is_rank(self, members: tuple[Member, ...]) -> bool:
        """True for the axis between the basis and the coefficient of one pair, and nothing else."""
        owners = {member.layer.rpartition(".")[0] for member in members}
        between = {(member.layer.rpartition(".")[2], member.role) for member in members}
        return (
            between == {("basis", "producer"), ("coefficient", "consumer")}
            and len(owners) == 1
            and isinstance(self._modules.get(owners.pop()), Pair)
        )
