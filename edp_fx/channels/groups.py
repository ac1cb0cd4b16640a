"""Groups: the channels of all parameters that must be removed together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import coo_matrix
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from edp_fx.channels.atoms import Ledger, Mark
from edp_fx.channels.rectangles import rectangularise
from edp_fx.channels.sweep import Sweep
from edp_fx.pairs import Pair

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True, eq=False)
class Member:
    """One axis of one parameter or buffer that takes part in a group.

    ``owner[i]`` is the element of the group that index ``i`` of the axis belongs to, -1 for none.
    ``role``: ``"producer"`` (output axis of a layer), ``"consumer"`` (input axis), ``"affine"`` (bias, scale, shift
    or statistics that follow the channel) or ``"other"`` (a bare parameter).
    """

    parameter: str
    axis: int
    owner: np.ndarray
    role: str

    @property
    def layer(self) -> str:
        """The module that owns the parameter."""
        return self.parameter.rpartition(".")[0]

    def indices(self, element: int) -> np.ndarray:
        """The indices along the axis that go when ``element`` goes."""
        return np.flatnonzero(self.owner == element)


@dataclass(frozen=True, eq=False)
class Group:
    """Channels tied to one another; an *element* is the unit that is kept or removed.

    ``exact``: removing elements whose parameters are all zero does not change the function.
    ``zero_propagates``: zero producers are enough for that; otherwise the consumers' slices must be zero too.
    ``frozen``: why nothing of it can be removed, else None; ``is_output``: because the model gives it back.
    ``ties``: (node, op) of what tied it, in order.
    """

    id: int
    name: str
    kind: str
    size: int
    members: tuple[Member, ...]
    exact: bool
    inexact_reasons: tuple[str, ...]
    zero_propagates: bool
    frozen: str | None
    is_output: bool
    ties: tuple[tuple[str, str], ...]
    view: int = 0
    components: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64), repr=False)
    shares: Callable[[int], tuple[float, float]] = field(default=lambda _: (0.0, 0.0), repr=False)

    @property
    def macs_share(self) -> float:
        """The share of the dense network's multiply-accumulates that hangs on it; 0 where it is not prunable."""
        return self.shares(self.id)[0]

    @property
    def params_share(self) -> float:
        """The share of the dense network's parameters that hangs on it; 0 where it is not prunable."""
        return self.shares(self.id)[1]

    @property
    def prunable(self) -> bool:
        """Something of it can be removed and something kept."""
        return self.frozen is None and self.size > 1

    @property
    def producers(self) -> tuple[str, ...]:
        """Names of the layers that make these channels."""
        return _layers(self.members, "producer")

    @property
    def consumers(self) -> tuple[str, ...]:
        """Names of the layers that read these channels."""
        return _layers(self.members, "consumer")


def _layers(members: tuple[Member, ...], role: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(member.layer for member in members if member.role == role))


@dataclass(frozen=True, eq=False)
class View:
    """One sweep after its ties were resolved: the component of every atom, and what is known of each component."""

    sweep: Sweep
    component: np.ndarray
    frozen: dict[int, Mark]

    @property
    def ledger(self) -> Ledger:
        """What the rules wrote down."""
        return self.sweep.ledger


def resolve(sweep: Sweep) -> View:
    """Make tensors rectangular and find the components of a sweep."""
    component = rectangularise(sweep.ledger)
    return View(sweep, component, sweep.ledger.frozen_components(component))


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
    places, width = touching.indices.astype(np.int32, copy=False).tobytes(), 4
    bounds = touching.indptr.tolist()
    signatures: dict[tuple[bool, bytes], list[int]] = defaultdict(list)
    for one in np.flatnonzero(np.diff(touching.indptr)).tolist():
        signatures[one in frozen, places[width * bounds[one] : width * bounds[one + 1]]].append(one)
    return signatures


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
        """True for the axis between the basis and the coefficient of one pair."""
        owners = {member.layer.rpartition(".")[0] for member in members}
        return len(members) >= 2 and len(owners) == 1 and isinstance(self._modules.get(owners.pop()), Pair)
