"""What an element's removal costs when the layers that read it make up for it by those that stay, in closed form.

A layer's outputs change by W_P·(x_P - A·x_R), where x_R are the inputs it keeps and A predicts the others from them
(:mod:`edp_fx.compensation`). To second order the loss rises by the square of that weighted by the gradients behind the
layer: tr(S·W_P·Σ_P|R·W_Pᵀ), S the second moments of the gradients of its outputs and Σ_P|R what is left of the inputs'
covariance. Elements are taken one block after the other from the cheapest on, weights and covariance brought after
them each time (Hassibi and Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon", 1993, there
for single weights).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from edp_fx.compensation.moments import Moments, sampled
from edp_fx.compensation.refit import LARGEST, RIDGE, evaluating
from edp_fx.compressor.importance import Context, Importance
from edp_fx.errors import TrainingError
from edp_fx.inputs import COMPUTE_LAYERS
from edp_fx.leaves import tensors_of
from edp_fx.progress import Look, nothing

STEPS = 32  # blocks in which a group is taken
LAST = 1e30  # what no observed layer reads goes last


class Seen:
    """What a layer read and how its outputs matter, over all images.

    Attributes:
        inputs: moments of the inputs at one position.
        gradients: second moments of the gradients by the outputs, summed over an image's positions, mean of images.
    """

    def __init__(self) -> None:
        self.inputs = Moments()
        self.gradients: Tensor | float = 0.0

    def read(self, values: Tensor, batches: int) -> None:
        """A batch of inputs [positions, channels]."""
        places = sampled(len(values), values.shape[1], batches, values.device)
        values = values if places is None else values[places]
        self.inputs.add(values, values[:, :0])

    def matter(self, gradient: Tensor, batches: int, images: int) -> None:
        """A batch of gradients [positions, channels]."""
        places = sampled(len(gradient), gradient.shape[1], batches, gradient.device)
        some = gradient if places is None else gradient[places]
        self.gradients = self.gradients + (some.T @ some).double() * (len(gradient) / len(some) / images)


class Reconstruction(Importance):
    """The loss by what cannot be made up for.

    It must have observed the network, see :meth:`of`.
    """

    def __init__(self, seen: Mapping[str, Seen] | None = None) -> None:
        super().__init__()
        self.seen = dict(seen or {})

    @property
    def ready(self) -> bool:
        """Whether it has observed a network."""
        return bool(self.seen)

    @classmethod
    def of(cls, gm: fx.GraphModule, batches: Sequence[tuple[Tensor, ...]], look: Look = nothing) -> Reconstruction:
        """Observe ``gm``, explicit, on inputs of a few images each; it is left as it is. ``look`` is told of each.

        No labels are needed: a classifier's outputs, [images, classes], are weighed by random signs such that the
        squared gradients are on average its Fisher information, diag(p) - p·pᵀ of the odds p that it gives; other
        outputs are weighed alike, each by its own scale.
        """
        seen: dict[str, Seen] = {}
        images = sum(len(batch[0]) for batch in batches)
        handles = []
        for name, layer in gm.named_modules():
            weight = layer._parameters.get("weight")
            if isinstance(layer, COMPUTE_LAYERS) and weight is not None and _plain(layer) and _inputs(layer) <= LARGEST:
                handles.append(layer.register_forward_hook(_observer(name, seen, len(batches), images)))
        trained = [one for one in gm.parameters() if one.requires_grad]
        dice = torch.Generator().manual_seed(0)
        try:
            with evaluating(gm), torch.enable_grad():
                for one in trained:
                    one.requires_grad_(False)
                for number, batch in enumerate(batches):
                    look(f"choosing what goes, by {images} images", number, len(batches))
                    surprise = _surprise(gm(*map(_differentiable, batch)), dice)
                    if surprise.requires_grad:
                        surprise.backward()
            look("choosing", len(batches), len(batches))
        finally:
            for handle in handles:
                handle.remove()
            for one in trained:
                one.requires_grad_(True)
        return cls(seen)

    @torch.no_grad()
    def scores(self, context: Context) -> Tensor:
        """What each adds when its turn comes [n]."""
        elements, names = context.elements, set(context.parameters)
        result = torch.zeros(elements.n)
        for number, (group, kind) in enumerate(zip(elements.groups, elements.kinds, strict=True)):
            readers = []
            for part in kind.readers(group, names):
                seen = self.seen.get(part.parameter.rpartition(".")[0])
                weight = context.parameters[part.parameter].detach()
                if seen is not None and weight.shape[1] == len(part.owner) == len(seen.inputs.means[0]):
                    readers.append(Reader.of(weight, seen, part.owner))
            start, size = int(elements.offsets[number]), group.size
            losses = _losses(readers, size) if readers else np.full(size, LAST)
            result[start : start + size] = torch.from_numpy(losses).float()
        return result


@dataclass
class Reader:
    """A layer as elements leave it.

    Attributes:
        matters: WᵀSW of the weights that make up for what is gone, summed over a kernel's places [channels, channels].
        precision: inverse covariance of the inputs that are left.
        owner: per input channel, the element that owns it, -1 where none does.
    """

    matters: Tensor
    precision: Tensor
    owner: NDArray[np.int64]

    @classmethod
    def of(cls, weight: Tensor, seen: Seen, owner: NDArray[np.int64]) -> Reader:
        precision = torch.linalg.inv(seen.inputs.cautious(RIDGE))
        taps = weight.double().flatten(2) if weight.dim() > 2 else weight.double()[..., None]
        weighted = taps  # all alike where no gradient came
        if isinstance(seen.gradients, Tensor):
            weighted = torch.einsum("ij,jct->ict", seen.gradients, taps)
        return cls(torch.einsum("ict,idt->cd", taps, weighted), precision, owner)

    def prices(self, size: int) -> NDArray[np.float64]:
        """What each element would add if it went next, its channels one by one [size]."""
        single: NDArray[np.float64] = (self.matters.diagonal() / self.precision.diagonal()).cpu().numpy()
        mine = self.owner >= 0
        return np.bincount(self.owner[mine], single[mine], minlength=size).astype(np.float64)

    def without(self, elements: NDArray[np.int64]) -> float:
        """Take elements out; what that adds."""
        out = np.isin(self.owner, elements)
        gone, left = (torch.as_tensor(np.flatnonzero(one), device=self.precision.device) for one in (out, ~out))
        if not len(gone):
            return 0.0
        block, square = self.precision[gone][:, gone], self.matters[gone][:, gone]
        across = self.precision[gone][:, left]
        fill = torch.linalg.solve(block, across)  # what the others take over of the gone
        added = float(torch.linalg.solve(block, square).diagonal().sum())
        # -MF - (MF)' + F'QF in one product
        change = (self.matters[left][:, gone] - 0.5 * fill.T @ square) @ fill
        self.matters = self.matters[left][:, left] - change - change.T
        self.precision = self.precision[left][:, left] - across.T @ fill
        self.owner = self.owner[~out]
        return max(0.0, added)


def _losses(readers: Sequence[Reader], size: int) -> NDArray[np.float64]:
    """What each element of a group adds when its turn comes, never less than those before it [size]."""
    losses = np.zeros(size)
    left = np.ones(size, dtype=bool)
    block, most = max(1, size // STEPS), 0.0
    while left.any():
        prices = np.where(left, sum(one.prices(size) for one in readers), np.inf)
        gone = np.argsort(prices, kind="stable")[: min(block, int(left.sum()))]
        most = max(most, sum(one.without(gone) for one in readers) / len(gone))
        # within a block the cheaper go first, too
        losses[gone] = most * (1 + 1e-6 * np.arange(len(gone)))
        left[gone] = False
    return losses


def _plain(layer: nn.Module) -> bool:
    """Whether the weight's axis 1 are the channels of the input."""
    return not isinstance(layer, nn.modules.conv._ConvTransposeNd) and getattr(layer, "groups", 1) == 1


def _inputs(layer: nn.Module) -> int:
    return int(layer._parameters["weight"].shape[1])  # type: ignore[union-attr]


def _observer(name: str, seen: dict[str, Seen], batches: int, images: int) -> Any:
    def observe(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        if not given or not isinstance(output, Tensor):  # called by keywords, or more than a layer
            return
        axis = 1 if isinstance(layer, nn.modules.conv._ConvNd) else -1
        mine = seen.setdefault(name, Seen())

        def lines(value: Tensor) -> Tensor:
            return value.detach().movedim(axis, -1).reshape(-1, value.shape[axis])

        mine.read(lines(given[0]), batches)
        if output.requires_grad:
            output.register_hook(lambda gradient: mine.matter(lines(gradient), batches, images))

    return observe


def _differentiable(tensor: Tensor) -> Tensor:
    """A copy that takes part in gradients, if it can."""
    return tensor.detach().requires_grad_().clone() if tensor.is_floating_point() else tensor


def _surprise(outputs: Any, dice: torch.Generator) -> Tensor:
    """A number whose squared gradients are how much the outputs matter, summed over the images."""
    total: Tensor | float = 0.0
    for one in tensors_of(outputs):
        if not one.is_floating_point() or not one.requires_grad:
            continue
        if not bool(one.isfinite().all()):
            raise TrainingError(
                "the network gives values that are no numbers: check the weights, and how images are normalised"
            )
        if one.dim() == 2 and one.shape[1] > 1:
            odds = one.detach().float().softmax(1)
            signs = 2.0 * torch.randint(2, odds.shape, generator=dice) - 1.0
            signed = odds.sqrt() * signs.to(odds)
            total = total + (one.float() * (signed - odds * signed.sum(1, keepdim=True))).sum()
        else:
            noise = torch.randn(one.shape, generator=dice).to(one.device, one.dtype)
            scale = one.detach().std().clamp_min(1e-12) * max(1.0, one[0].numel()) ** 0.5
            total = total + (one * noise).sum() / scale
    return torch.as_tensor(total)
