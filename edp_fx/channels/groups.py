"""Groups: the channels of all parameters that must be removed together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np


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
