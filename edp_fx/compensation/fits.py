"""The three ways in which a layer of a small network takes after its counterpart in the whole one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edp_fx.compensation.maps import LinearMap, watched
from edp_fx.compensation.moments import Moments, regression, sampled, sums
from edp_fx.compensation.side import Side, Values

LOUDER = 2.0  # what an output is scaled by at most


@dataclass(frozen=True)
class Sum:
    """What a layer's outputs are added to, and how they come there.

    Attributes:
        other: the node of the small network whose value they are added to.
        there: position of the sum in the whole network.
        scale: of the outputs [channels].
        shift: after that [channels].
    """

    other: fx.Node
    there: int
    scale: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Stop:
    """A layer that is refitted.

    Attributes:
        name: of the module.
        here: position of its node in the small network.
        there: of its counterpart in the whole one.
        rows: which output channels of the counterpart it has; all where None.
        fit: how.
        sum: that the outputs go into, if any: then it is the sum's value that is fitted.
    """

    name: str
    here: int
    there: int
    rows: Tensor | None
    fit: type[Fit]
    sum: Sum | None = None

    @property
    def until(self) -> int:
        """Position up to which the whole network has run when the layer is fitted."""
        return self.there if self.fit.before else self.there + 1 if self.sum is None else self.sum.there + 1

    def of_whole(self, value: Tensor, axis: int, places: Tensor | None = None) -> Tensor:
        """What the counterpart has [positions, channels] in these rows; at these positions only."""
        lines = _lines(value, axis)
        if places is not None:
            lines = lines[places]
        return lines if self.rows is None else lines[:, self.rows.to(value.device)]


class Fit(ABC):
    """Sees a layer and its counterpart on every batch, then changes the layer.

    Args:
        small: the small network.
        whole: the whole one.
        stop: the layer.
        batches: how many will be seen.
        ridge: of :func:`~edp_fx.compensation.moments.regression`.
    """

    before = False  # whether what the counterpart is given counts, instead of what it puts out

    def __init__(self, small: Side, whole: Side, stop: Stop, batches: int, ridge: float) -> None:
        self.small, self.whole, self.stop = small, whole, stop
        self.batches, self.ridge = batches, ridge
        self.node: fx.Node = small.nodes[stop.here]
        self.other: fx.Node = whole.nodes[stop.there]
        self.module: nn.Module = small.module(stop.here)
        self.moments = Moments()

    @abstractmethod
    def see(self, small: Values, whole: Values) -> None:
        """One batch's values just before the layer, and before or behind its counterpart."""

    @abstractmethod
    def apply(self) -> None:
        """Change the layer."""


class Weights(Fit):
    """By a weight and a bias that are nearest to the counterpart's outputs on what the layer sees.

    Where the outputs are added to a skip connection, the sum shall be what it was: what the skip connection lost is
    made up for, too. Elsewhere least squares put out less than they should where they foretell little, and layer upon
    layer the signal would fade: each output is scaled about its mean to the variance that its counterpart has (Jordan
    et al., "REPAIR", ICLR 2023, there by batch norms).
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._wanted: Tensor | float = 0.0  # sums of the counterpart's outputs and of their squares [2, m]

    def see(self, small: Values, whole: Values) -> None:
        outputs, found = watched(self.module, self.small.call(self.stop.here, small))
        assert isinstance(found, LinearMap)
        given = _lines(outputs, found.axis)
        features = self.module.weight[0].numel()  # type: ignore[index]
        places = sampled(len(given), features, self.batches, given.device)
        if places is not None:
            given = given[places]
        wanted = self._wanted_of(small, whole, outputs, found.axis, places)
        self.moments.add(found.patches(places), wanted - given)
        self._wanted = self._wanted + sums(wanted)

    def _wanted_of(self, small: Values, whole: Values, outputs: Tensor, axis: int, places: Tensor | None) -> Tensor:
        end = self.stop.sum
        if end is None:
            return self.stop.of_whole(whole[self.other], axis, places)
        other = _lines(small[end.other].expand_as(outputs), axis)
        total = self.stop.of_whole(whole[self.whole.nodes[end.there]], axis, places)
        return (total - (other if places is None else other[places]) - end.shift.to(total)) / end.scale.to(total)

    def apply(self) -> None:
        slope, constant = regression(self.moments, self.ridge)
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        matrix = weight.flatten(1).double() + slope
        mean, square = torch.as_tensor(self._wanted) / self.moments.count
        variance = ((matrix @ self.moments.covariances[0]) * matrix).sum(1)
        most = LOUDER if self.stop.sum is None else 1.0
        scale = (_relative(square - mean**2) / _relative(variance)).sqrt().clamp(1.0, most)
        weight.copy_((matrix * scale[:, None]).view_as(weight))
        self._shift(scale, constant, (1 - scale) * mean)

    def _shift(self, scale: Tensor, constant: Tensor, rest: Tensor) -> None:
        """Outputs are to be scaled, bias and all: by the bias, or where there is none by the mean of a batch norm that
        alone reads them, or by a new bias."""
        bias, shift = self.module.bias, scale * constant + rest
        if isinstance(bias, Tensor):
            bias.copy_(scale * bias + shift)
            return
        norm = self._norm_behind()
        if norm is not None:
            norm.running_mean.sub_(shift)  # type: ignore[union-attr]
        else:
            weight: nn.Parameter = self.module.weight  # type: ignore[assignment]
            self.module.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=weight.requires_grad)

    def _norm_behind(self) -> _BatchNorm | None:
        readers = list(self.node.users)
        if len(readers) != 1 or readers[0].op != "call_module":
            return None
        name = str(readers[0].target)
        module = self.small.gm.get_submodule(name)
        plain = isinstance(module, _BatchNorm) and module.running_mean is not None
        return module if plain and len(self.small.calls[name]) == 1 else None  # type: ignore[return-value]


class Statistics(Fit):
    """By a batch norm's statistics: moved and scaled as those of its inputs here are to those of its counterpart's.

    So a network that lost nothing keeps its own, which are of far more images than are seen here.
    """

    before = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._sums: list[Tensor | float] = [0.0, 0.0]
        self._count = 0

    def see(self, small: Values, whole: Values) -> None:
        given, wanted = small[self.node.all_input_nodes[0]], whole[self.other.all_input_nodes[0]]
        both = _lines(given, 1), self.stop.of_whole(wanted, 1)
        for place, lines in enumerate(both):
            self._sums[place] = self._sums[place] + sums(lines)
        self._count += len(both[0])

    def apply(self) -> None:
        norm: Any = self.module
        (here, here_square), (there, there_square) = (torch.as_tensor(one) / self._count for one in self._sums)
        ratio = _relative(here_square - here**2) / _relative(there_square - there**2)
        mean = here - (there - norm.running_mean.double()) * ratio.sqrt()
        variance = (norm.running_var.double() + norm.eps) * ratio - norm.eps
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance.clamp_min(0))


class Bias(Fit):
    """By its bias alone: the mean of what it puts out is that of its counterpart."""

    def see(self, small: Values, whole: Values) -> None:
        outputs = self.small.call(self.stop.here, small)()
        axis = outputs.dim() - self.module.weight.dim() + 1 if self.module.weight.dim() > 2 else outputs.dim() - 1  # type: ignore[operator]
        difference = self.stop.of_whole(whole[self.other], axis) - _lines(outputs, axis)
        self.moments.add(difference[:, :0], difference)

    def apply(self) -> None:
        self.module.bias.add_(self.moments.means[1])  # type: ignore[operator]


def _lines(value: Tensor, axis: int) -> Tensor:
    """[positions, channels]."""
    return value.movedim(axis, -1).reshape(-1, value.shape[axis])


def _relative(variance: Tensor) -> Tensor:
    """Not less than a thousandth of the mean: a channel that hardly varies says nothing of its scale."""
    return variance.clamp_min(0) + 1e-3 * variance.mean().clamp_min(1e-30)
