"""All removable elements of a network (ranks, channels, head dimensions, kernels, branches) as one flat index.

A channel group couples slices of many parameters: element ``e`` of a group owns, in each member parameter,
the indices of one axis where ``owner == e``; kernels are one element that owns a part of a parameter that no axis
tells apart, a branch one that owns all of its last layer. Numbering the
elements of all groups 0 … n-1 turns every question about groups (norms, gradients, scaling) into one scatter or gather
per parameter axis.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edp_fx.channels.kernels import Kernels, beyond_one_kernel
from edp_fx.channels.residuals import Branch

if TYPE_CHECKING:
    from edp_fx.channels import Group

Keep = dict[int, NDArray[np.bool_]]
WHOLE = ("kernel", "branch")  # kinds of one element a group


@dataclass(frozen=True, eq=False)
class Site:
    """One axis of one parameter: ``index[i]`` is the element that owns index i, or n where none does.

    Where there is a ``part`` the element owns what that gives of the parameter (of many at once); with axis None
    ``index`` has length 1. What is weighed channel by channel, a branch by all parameters of its last layer, has
    ``slots``: ``slots[i]`` numbers output channel i among those of all of them.
    """

    parameter: str
    axis: int | None
    role: str
    index: Tensor
    part: Callable[[Sequence[Tensor]], list[Tensor]] | None = None
    slots: Tensor | None = None

    @property
    def place(self) -> tuple[int | None, str]:
        """What tells it from other sites of its parameter."""
        return self.axis, self.role if self.role in WHOLE else ""

    def line(self, values: Tensor) -> Tensor:
        """``values``, shaped as the parameter, summed over all axes but this one [its length]."""
        dims = [dim for dim in range(values.dim()) if dim != self.axis]
        return (values.sum(dims) if dims else values).reshape(-1).float()


def owned(sites: Sequence[Site], parameters: Mapping[str, Tensor]) -> list[Tensor]:
    """What the elements of each site own of its parameter, shaped as this."""
    values = [parameters[site.parameter].detach() for site in sites]
    for part in dict.fromkeys(site.part for site in sites if site.part is not None):
        mine = [number for number, site in enumerate(sites) if site.part is part]
        for number, value in zip(mine, part([values[number] for number in mine]), strict=True):
            values[number] = value
    return values


class Elements:
    """The flat index of the elements of ``groups``.

    Args:
        groups: the groups, kernels and branches, whose elements may be removed.
        parameters: names of the trainable parameters; members that are buffers are left to the prune pass.
    """

    def __init__(self, groups: Sequence[Group | Kernels | Branch], parameters: Iterable[str]) -> None:
        names = set(parameters)
        self.groups = tuple(groups)
        self.kinds = np.array([group.kind for group in groups], dtype=str)
        self.sizes = np.array([group.size for group in groups], dtype=np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)
        self.n = int(self.offsets[-1])
        # per element: position of its group in `groups`
        self.group_of = np.repeat(np.arange(len(groups)), self.sizes)
        index: dict[tuple[str, int, str], NDArray[np.int64]] = {}
        kernels: list[Site] = []
        by_channel: list[Site] = []
        owners: list[Tensor] = []
        consumed = np.zeros(len(groups), dtype=bool)
        for number, group in enumerate(groups):
            if isinstance(group, Kernels):
                element = torch.from_numpy(self.offsets[number : number + 1])
                kernels.append(Site(group.parameter, None, group.kind, element, beyond_one_kernel))
                continue
            if isinstance(group, Branch):
                element = torch.full((group.channels,), int(self.offsets[number]))
                slots = torch.arange(group.channels) + sum(map(len, owners))
                owners.append(element)
                by_channel.extend(Site(name, 0, group.kind, element, None, slots) for name in group.parameters)
                continue
            for member in group.members:
                if member.parameter not in names:
                    continue
                owner = np.asarray(member.owner, dtype=np.int64)
                key = (member.parameter, member.axis, member.role)
                flat = index.setdefault(key, np.full(len(owner), self.n, dtype=np.int64))
                mine = owner >= 0
                flat[mine] = owner[mine] + self.offsets[number]
                consumed[number] |= member.role == "consumer"
        self.sites = (*(Site(*key, torch.from_numpy(flat)) for key, flat in index.items()), *kernels, *by_channel)
        self._owners = torch.cat([*owners, torch.zeros(0, dtype=torch.int64)])
        ranks = self.kinds == "rank"
        # The change of the loss when an element goes is seen at its consumers' slices or, where no parameter
        # consumes it (the product of queries and keys), at its producers'.
        self.gates = self._restricted(
            lambda site: consumed if site.role == "consumer" else ~consumed & (site.role != "other")
        )
        # What must be zero before it goes: a rank's column; all that makes, scales and reads a channel,
        # since a layer norm on the way would feel a channel that is only not read.
        self.fading = self._restricted(lambda site: ~ranks | (site.role == "consumer"))
        self._moved: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def _restricted(self, wanted: Callable[[Site], NDArray[np.bool_]]) -> tuple[Site, ...]:
        """The sites with only the groups for which ``wanted(site)`` [groups] holds."""
        result = []
        for site in self.sites:
            flat = site.index.numpy()
            mine = np.append(wanted(site), False)[np.append(self.group_of, -1)[flat]]
            if mine.any():
                index = torch.from_numpy(np.where(mine, flat, self.n))
                result.append(replace(site, index=index))
        return tuple(result)

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
        total = torch.zeros(self.n + 1, device=device)
        known = [(self.on(site, device), line) for site, line in lines]
        if not known:
            return total
        # once for all sites: on a GPU as many small additions would cost more than the step they belong to
        places, values = zip(*known)
        return total.index_add_(0, torch.cat(places), torch.cat(values))

    def channel_sums(self, lines: Iterable[tuple[Site, Tensor]], device: torch.device) -> Tensor:
        """Lines of sites with slots [channels] summed channel by channel [slots]."""
        total = torch.zeros(len(self._owners), device=device)
        known = [(self._kept(site.slots, device), line) for site, line in lines if site.slots is not None]
        if not known:
            return total
        slots, values = zip(*known)
        return total.index_add_(0, torch.cat(slots), torch.cat(values))

    def of_channels(self, values: Tensor) -> Tensor:
        """Values by channel [slots] summed by element [n+1]."""
        return values.new_zeros(self.n + 1).index_add_(0, self._kept(self._owners, values.device), values)

    def scale(self, site: Site, parameter: Tensor, factor: Tensor) -> None:
        """Multiply the parameter's slices in place by their elements' factors [n+1] (last entry 1)."""
        shape = [1] * parameter.dim()
        if site.axis is not None:
            shape[site.axis] = -1
        line = factor[self.on(site, factor.device)].view(shape).to(parameter.dtype)
        if site.part is None:
            parameter.mul_(line)
        else:
            parameter.add_(site.part([parameter])[0] * (line - 1))

    def split(self, flat: NDArray[np.bool_]) -> Keep:
        """A flat mask [n] as the mapping from group id to that group's mask."""
        return {
            group.id: flat[start:stop] for group, start, stop in zip(self.groups, self.offsets[:-1], self.offsets[1:])
        }

    def joined(self, keep: Keep) -> NDArray[np.bool_]:
        """The inverse of :meth:`split`."""
        return np.concatenate([np.zeros(0, dtype=bool), *(keep[group.id] for group in self.groups)])

    def carried(
        self,
        new: Elements,
        kept: Mapping[str, Mapping[int, NDArray[np.int64]]],
        separated: Collection[str] = (),
    ) -> NDArray[np.int64]:
        """For each element of ``new``, its index here, or -1.

        Args:
            new: the elements of the same network after pruning.
            kept: per parameter and axis the indices that pruning kept; axes not named were kept whole.
            separated: names of the layers that became a depthwise and a pointwise one.
        """
        here = {(site.parameter, site.place): site.index.numpy() for site in self.sites}
        result = np.full(new.n + 1, -1, dtype=np.int64)
        for site in new.sites:
            known = [key for key in _before(site, separated) if key in here]
            if not known:
                continue
            (parameter, (axis, _)), old = known[0], here[known[0]]
            chosen = None if axis is None else kept.get(parameter, {}).get(axis)
            lined = old if chosen is None else old[np.asarray(chosen, dtype=np.int64)]
            index = site.index.numpy()
            if len(lined) != len(index):
                continue
            valid = (index < new.n) & (lined < self.n)
            result[index[valid]] = lined[valid]
        return result[: new.n]


def _before(site: Site, separated: Collection[str]) -> list[tuple[str, tuple[int | None, str]]]:
    """Parameters and axes whose indices were those of ``site`` before layers, plain or pairs, were separated."""
    layer, _, leaf = site.parameter.rpartition(".")
    owner, _, part = layer.rpartition(".")
    if owner not in separated:
        return [(site.parameter, site.place)]
    if part == "depthwise" or site.axis == 1:
        return [(f"{owner}.weight", (1, "")), (f"{owner}.basis.weight", (1, ""))]
    return [(f"{owner}.{leaf}", site.place), (f"{owner}.coefficient.{leaf}", site.place)]
