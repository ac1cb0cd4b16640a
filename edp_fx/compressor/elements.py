"""All removable elements of a network, of every kind, as one flat index.

A group couples slices of many parameters: element ``e`` of a group owns, in each parameter, the indices of one axis
where ``owner == e``, or a part of the parameter that no axis tells apart. Numbering the elements of all groups 0 … n-1
turns every question about groups (norms, gradients, scaling) into one scatter or gather per parameter axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edp_fx.compressor.kinds import KINDS
from edp_fx.compressor.kinds.base import ROLES, Applied, Flags, Indices, Part, Removable

Keep = dict[int, NDArray[np.bool_]]


@dataclass(frozen=True, eq=False)
class Site:
    """One axis of one parameter: ``index[i]`` is the element that owns index i, or n where none does.

    Where there is a ``selection`` the element owns what that gives of the parameter (of many at once); with axis None
    ``index`` has length 1.
    """

    parameter: str
    axis: int | None
    role: str
    index: Tensor
    selection: Callable[[Sequence[Tensor]], list[Tensor]] | None = None

    @property
    def place(self) -> tuple[int | None, str]:
        """What tells it from other sites of its parameter."""
        return self.axis, "" if self.role in ROLES else self.role

    def line(self, values: Tensor) -> Tensor:
        """``values``, shaped as the parameter, summed over all axes but this one [its length]."""
        dims = [dim for dim in range(values.dim()) if dim != self.axis]
        return (values.sum(dims) if dims else values).reshape(-1).float()


def owned(sites: Sequence[Site], parameters: Mapping[str, Tensor]) -> list[Tensor]:
    """What the elements of each site own of its parameter, shaped as this."""
    values = [parameters[site.parameter].detach() for site in sites]
    for selection in dict.fromkeys(site.selection for site in sites if site.selection is not None):
        mine = [number for number, site in enumerate(sites) if site.selection is selection]
        for number, value in zip(mine, selection([values[number] for number in mine]), strict=True):
            values[number] = value
    return values


@dataclass(eq=False)
class _Axis:
    """What all groups own along one axis, while it is gathered: element numbers, n where none.

    Attributes:
        part: the first that was found there.
        nobody: n.
        owned: all that is.
        gates: of these only what is weighed; numbers above n are gates of their own.
        fading, penalised: of these only what is.
    """

    part: Part
    nobody: int
    owned: Indices | None = None
    gates: Indices | None = None
    fading: Indices | None = None
    penalised: Indices | None = None

    def add(self, what: str, mine: Flags, numbers: Indices) -> None:
        """Write ``numbers`` where ``mine`` holds into one of them."""
        flat = getattr(self, what)
        if flat is None:
            flat = np.full(len(self.part.owner), self.nobody, dtype=np.int64)
            setattr(self, what, flat)
        flat[mine] = numbers

    def site(self, flat: Indices) -> Site:
        """With only these indices."""
        part = self.part
        return Site(part.parameter, part.axis, part.role, torch.from_numpy(flat), part.selection)


class Elements:
    """The flat index of the elements of ``groups``.

    Args:
        groups: whose elements may be removed.
        parameters: names of the trainable parameters; members that are buffers are left to the prune pass.

    Attributes:
        n: how many elements there are.
        kinds: of each group.
        sizes: elements of each group.
        offsets: position of each group's first element.
        group_of: position of each element's group [n].
        sites: all that elements own.
        gates: where gradients weigh them; numbers above n are gates that count one by one for their element.
        fading: what must be zero before they go.
        penalised: what group-sparse penalties shrink.
    """

    def __init__(self, groups: Sequence[Removable], parameters: Iterable[str]) -> None:
        names = set(parameters)
        self.groups = tuple(groups)
        self.kinds = tuple(KINDS[group.kind] for group in groups)
        self.sizes = np.array([group.size for group in groups], dtype=np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)
        self.n = int(self.offsets[-1])
        self.group_of = np.repeat(np.arange(len(groups)), self.sizes)
        axes: dict[tuple[str, int | None, str, int], _Axis] = {}
        gate_owners: list[NDArray[np.int64]] = []
        for number, (group, kind) in enumerate(zip(self.groups, self.kinds)):
            start = int(self.offsets[number])
            gates: NDArray[np.int64] | None = None
            for part in kind.parts(group, names):
                mine = part.owner >= 0
                element = part.owner[mine] + start
                gate = element
                if part.each:  # all of a group's parts share its gates, index by index
                    if gates is None:
                        gates = self.n + 1 + sum(map(len, gate_owners)) + np.arange(len(element))
                        gate_owners.append(element)
                    gate = gates
                key = part.parameter, part.axis, part.role, -1 if part.role in ROLES else number
                axis = axes.setdefault(key, _Axis(part, self.n))
                axis.add("owned", mine, element)
                if not len(element):
                    continue
                if part.weighed:
                    axis.add("gates", mine, gate)
                if part.faded:
                    axis.add("fading", mine, element)
                if part.penalised:
                    axis.add("penalised", mine, element)
        found = axes.values()
        self.sites = tuple(axis.site(axis.owned) for axis in found if axis.owned is not None)
        self.gates = tuple(axis.site(axis.gates) for axis in found if axis.gates is not None)
        self.fading = tuple(axis.site(axis.fading) for axis in found if axis.fading is not None)
        self.penalised = tuple(axis.site(axis.penalised) for axis in found if axis.penalised is not None)
        self._gate_owners = torch.from_numpy(np.concatenate([*gate_owners, np.zeros(0, dtype=np.int64)]))
        self._moved: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def on(self, site: Site, device: torch.device) -> Tensor:
        """``site.index`` on ``device``, kept there."""
        return self._kept(site.index, device)

    def _kept(self, tensor: Tensor, device: torch.device) -> Tensor:
        if device.type == "cpu":
            return tensor
        key = (id(tensor), device)
        if key not in self._moved:
            self._moved[key] = tensor, tensor.to(device)  # both: as long as a tensor lives its id is its own
        return self._moved[key][1]

    def sums(self, lines: Iterable[tuple[Site, Tensor]], device: torch.device) -> Tensor:
        """Sites' lines [length of the axis] summed by element [n+1]; the last entry is of what nobody owns."""
        return self._sums(lines, torch.zeros(self.n + 1, device=device))

    def squared_gates(self, lines: Iterable[tuple[Site, Tensor]], device: torch.device) -> Tensor:
        """Lines of ``gates`` summed by gate, squared, and these summed by element [n+1]."""
        squares = self._sums(lines, torch.zeros(self.n + 1 + len(self._gate_owners), device=device)).square_()
        result = squares[: self.n + 1]
        if len(self._gate_owners):
            result.index_add_(0, self._kept(self._gate_owners, device), squares[self.n + 1 :])
        return result

    def _sums(self, lines: Iterable[tuple[Site, Tensor]], total: Tensor) -> Tensor:
        known = [(self.on(site, total.device), line) for site, line in lines]
        if not known:
            return total
        # once for all sites: on a GPU as many small additions would cost more than the step they belong to
        places, values = zip(*known)
        return total.index_add_(0, torch.cat(places), torch.cat(values))

    def scale(self, site: Site, parameter: Tensor, factor: Tensor) -> None:
        """Multiply the parameter's slices in place by their elements' factors [n+1] (last entry 1)."""
        shape = [1] * parameter.dim()
        if site.axis is not None:
            shape[site.axis] = -1
        line = factor[self.on(site, factor.device)].view(shape).to(parameter.dtype)
        if site.selection is None:
            parameter.mul_(line)
        else:
            parameter.add_(site.selection([parameter])[0] * (line - 1))

    def split(self, flat: NDArray[np.bool_]) -> Keep:
        """A flat mask [n] as the mapping from group id to that group's mask."""
        return {
            group.id: flat[start:stop] for group, start, stop in zip(self.groups, self.offsets[:-1], self.offsets[1:])
        }

    def joined(self, keep: Keep) -> NDArray[np.bool_]:
        """The inverse of :meth:`split`."""
        return np.concatenate([np.zeros(0, dtype=bool), *(keep[group.id] for group in self.groups)])

    def carried(self, new: Elements, applied: Applied) -> NDArray[np.int64]:
        """For each element of ``new``, the same network after a removal, its index here, or -1."""
        here = {(site.parameter, site.place): site.index.numpy() for site in self.sites}
        result = np.full(new.n + 1, -1, dtype=np.int64)
        for site in new.sites:
            parameter, axis = applied.moved.get((site.parameter, site.axis), (site.parameter, site.axis))
            old = here.get((parameter, (axis, site.place[1])))
            if old is None:
                continue
            chosen = None if axis is None else applied.kept.get(parameter, {}).get(axis)
            lined = old if chosen is None else old[np.asarray(chosen, dtype=np.int64)]
            index = site.index.numpy()
            if len(lined) != len(index):
                continue
            valid = (index < new.n) & (lined < self.n)
            result[index[valid]] = lined[valid]
        return result[: new.n]
