"""Find the channels and ranks whose parameters are all exactly zero."""

from __future__ import annotations

import numpy as np
import torch
from torch import fx

from edp_fx.channels import ChannelGraph, Group, Member

_STATISTICS = ("running_mean", "running_var")


def dead_elements(gm: fx.GraphModule, graph: ChannelGraph, allow_inexact: bool = False) -> dict[int, np.ndarray]:
    """The keep-set that leaves out every element that can go without changing the function.

    A rank is dead when its column of C or its filter in B is zero. A channel is dead when all its producers' slices,
    biases and norm parameters are zero and, where f(0) is not 0 on the way, the consumers' slices too. The least
    important of a wholly dead group is kept: a layer keeps one channel.
    """
    keep: dict[int, np.ndarray] = {}
    state = {**dict(gm.named_parameters(remove_duplicate=False)), **dict(gm.named_buffers(remove_duplicate=False))}
    for group in graph.prunable:
        if not group.exact and not allow_inexact:
            continue
        dead = dead_of(group, state)
        if dead.all():
            dead[0] = False
        if dead.any():
            keep[group.id] = ~dead
    return keep


def dead_of(group: Group, state: dict[str, torch.Tensor]) -> np.ndarray:
    """Which elements [size] of a group are dead: a rank zero in a half of its pair; a channel zero in all that makes
    it, and in what reads it where a zero does not stay one on the way."""
    if group.kind == "rank":
        dead = np.zeros(group.size, dtype=bool)
        for member in group.members:
            dead |= _zero_elements(member, state, group.size)
        return dead
    dead = np.ones(group.size, dtype=bool)
    made = False
    for member in group.members:
        follows = member.parameter.rpartition(".")[2] in _STATISTICS
        if follows or (member.role == "consumer" and group.zero_propagates):
            continue
        made |= member.role in ("producer", "affine", "other")
        dead &= _zero_elements(member, state, group.size)
    return dead if made else np.zeros(group.size, dtype=bool)


def _zero_elements(member: Member, state: dict[str, torch.Tensor], size: int) -> np.ndarray:
    """Elements whose slices of this member are all zero."""
    tensor = state[member.parameter].detach()
    others = [axis for axis in range(tensor.ndim) if axis != member.axis]
    alive = (tensor != 0).any(dim=others[0]) if len(others) == 1 else tensor != 0
    if len(others) > 1:
        alive = (tensor != 0).movedim(member.axis, 0).flatten(1).any(dim=1)
    owned = member.owner >= 0
    living = np.zeros(size, dtype=bool)
    np.logical_or.at(living, member.owner[owned], alive.cpu().numpy()[owned])
    return ~living
