"""How much an element matters: measures by name.

A measure sees the parameters just before every optimiser step (``accumulate``) and is asked for one number
per element when groups are ranked (``scores``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from edp_fx.compressor.elements import Elements, Site, owned


@dataclass
class Context:
    """What a measure may look at.

    Attributes:
        elements: the flat index of all removable elements.
        parameters: current parameters by name.
        gains: per coefficient parameter, the scale of each output row by the norm that follows it,
            gamma / sqrt(var + eps), where there is one.
    """

    elements: Elements
    parameters: Mapping[str, nn.Parameter]
    gains: Mapping[str, Tensor] = field(default_factory=dict)


class Importance:
    """Base of all measures.

    Attributes:
        total: what it accumulates [n+1]; the last entry collects what nobody owns.
        gradients: whether it weighs by gradients: what has none cannot be weighed.
    """

    gradients: ClassVar[bool] = False

    def __init__(self) -> None:
        self.total: Tensor | None = None

    @property
    def ready(self) -> bool:
        """Whether all is there that it weighs by, but for what it accumulates."""
        return True

    def __repr__(self) -> str:
        return type(self).__name__

    def accumulate(self, context: Context) -> None:
        """Called before every optimiser step, with this step's gradients in place."""

    def scores(self, context: Context) -> Tensor:
        """One non-negative number per element [n]."""
        raise NotImplementedError

    def carry(self, origin: NDArray[np.int64]) -> None:
        """Follow a network that was pruned: ``origin`` [new n] is each element's old index, -1 for none.

        What is new was seen in fewer steps than the others, so it counts as infinitely important till all start anew.
        """
        if self.total is not None:
            index = torch.from_numpy(np.append(np.where(origin >= 0, origin, len(self.total) - 1), len(self.total) - 1))
            new = torch.from_numpy(np.append(origin < 0, False)).to(self.total.device)
            self.total = self.total[index.to(self.total.device)].masked_fill(new, torch.inf)

    def reset(self) -> None:
        """Forget what was accumulated."""
        self.total = None


class Taylor(Importance):
    """First-order change of the loss when the element goes, squared and summed over the steps.

    Closing the gate g of an element (its consumers' weight slices times g) changes the loss by dL/dg = Σ w
    ∂L/∂w over those slices (Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR
    2019, eq. 8, there per weight). For a rank this is Σ_i C_ij ∂L/∂C_ij; which parts of which parameters a gate
    stands for, its kind says (:class:`edp_fx.compressor.kinds.base.Part`).
    """

    gradients = True

    def accumulate(self, context: Context) -> None:
        """Add this step's squared gate gradients."""
        elements = context.elements
        gradients = ((site, context.parameters[site.parameter].grad) for site in elements.gates)
        gates = {site: gradient for site, gradient in gradients if gradient is not None}
        if not gates:
            return
        values = zip(gates.items(), owned(list(gates), context.parameters), strict=True)
        lines = [(site, site.line(value * gradient)) for (site, gradient), value in values]
        step = elements.squared_gates(lines, lines[0][1].device)
        self.total = step if self.total is None else self.total.to(step.device).add_(step)

    def scores(self, context: Context) -> Tensor:
        """The accumulated squares; all alike where no gradient was seen yet."""
        if self.total is None:
            return torch.ones(context.elements.n)
        return self.total[:-1]


class Norm(Importance):
    """Squared Frobenius norm of what the element contributes: for a rank ‖C[:,j]‖²·‖B[j,:]‖², for a channel
    the mean squared norm of its consumers' slices times that of its producers'."""

    def scores(self, context: Context) -> Tensor:
        """Product of the squared norms on both sides of the element."""
        return _two_sided(context, {})


class Singular(Importance):
    """As :class:`Norm`, the coefficient scaled by the norm that follows: the energy of diag(γ/√(var+ε))·C·B
    per column, relative to its layer's, so that layers of different scale compare."""

    def scores(self, context: Context) -> Tensor:
        """Share of the group's energy."""
        energy = _two_sided(context, context.gains)
        elements = context.elements
        group = torch.from_numpy(elements.group_of).to(energy.device)
        whole = torch.zeros(len(elements.groups), device=energy.device).index_add_(0, group, energy)
        return energy / whole.clamp_min(1e-30)[group]


def _two_sided(context: Context, gains: Mapping[str, Tensor]) -> Tensor:
    elements = context.elements
    device = next(iter(context.parameters.values())).device
    means = []
    for role in ("consumer", "producer"):
        energies: list[tuple[Site, Tensor]] = []
        for site in elements.sites:
            parameter = context.parameters[site.parameter].detach()
            if site.role != role or parameter.dim() < 2:
                continue
            if role == "consumer" and site.parameter in gains:
                gain = gains[site.parameter].to(device)
                parameter = parameter * gain.view([-1] + [1] * (parameter.dim() - 1))
            energies.append((site, site.line(parameter.square())))
        total = elements.sums(energies, device)
        seen = elements.sums([(site, torch.ones_like(line)) for site, line in energies], device)
        # a side without weight matrices counts as 1
        means.append(torch.where(seen > 0, total / seen.clamp_min(1), 1.0))
    return (means[0] * means[1])[:-1]


def agreed(scores: Tensor, device: torch.device) -> NDArray[np.float64]:
    """The same finite scores on every rank: those of rank 0, sent by way of ``device``."""
    scores = torch.nan_to_num(scores.detach().float(), nan=0.0, posinf=3e38)
    if distributed.is_available() and distributed.is_initialized():
        scores = scores.to(device).contiguous()
        distributed.broadcast(scores, src=0)
    return scores.double().cpu().numpy()
