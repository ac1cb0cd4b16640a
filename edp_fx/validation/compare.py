"""Running two networks alike, and how far apart what they give is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edp_fx.leaves import tensors_of


@dataclass
class Run:
    """What one forward (and backward) pass gave.

    Attributes:
        outputs: floating point tensors of the output, in order.
        gradients: of the inputs, empty without a backward pass.
        buffers: floating point buffers that are saved, as they are afterwards, by name.
    """

    outputs: list[Tensor]
    gradients: list[Tensor]
    buffers: dict[str, Tensor]


def run(model: nn.Module, inputs: tuple[Tensor, ...], *, train: bool, seed: int = 0) -> Run:
    """Run a model; in train mode backwards too. Buffers and mode are given back as they were.

    Args:
        model: the network.
        inputs: its positional arguments.
        train: mode, and whether to run backwards from a random linear function of the outputs.
        seed: of every random number drawn on the way.
    """
    flags = [(module, module.training) for module in model.modules()]
    before = {name: buffer.clone() for name, buffer in model.named_buffers()} if train else {}
    leaves = [x.clone().requires_grad_(train and x.is_floating_point()) for x in inputs]
    try:
        model.train(train)
        with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(train):
            torch.manual_seed(seed)
            outputs = [t for t in tensors_of(model(*leaves)) if t.is_floating_point()]
            gradients: list[Tensor] = []
            if train:
                torch.manual_seed(seed + 1)
                loss = sum((t * torch.randn_like(t)).sum() for t in outputs)
                assert isinstance(loss, Tensor)
                wanted = [x for x in leaves if x.requires_grad]
                gradients = [g for g in torch.autograd.grad(loss, wanted, allow_unused=True) if g is not None]
        kept = model.state_dict() if train else {}  # a buffer that is not saved is a cache
        after = {n: b.clone() for n, b in model.named_buffers() if n in kept and b.is_floating_point()}
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in before:
                    buffer.copy_(before[name])
        for module, flag in flags:
            module.training = flag
    return Run([t.detach() for t in outputs], gradients, after)


def relative(reference: list[Tensor], other: list[Tensor]) -> float:
    """The largest absolute difference of two lists of tensors over the largest absolute value, tensor by tensor.

    Infinite when shapes differ, or where one has numbers that are not finite.
    """
    if [t.shape for t in reference] != [t.shape for t in other]:
        return float("inf")
    worst = 0.0
    for a, b in zip(reference, other):
        if a.numel() == 0:
            continue
        same = (a == b) | (a.isnan() & b.isnan())  # infinities, as bounds in buffers, too
        difference = float((a - b).masked_fill(same, 0).abs().max())
        if difference != difference or difference == float("inf"):
            return float("inf")
        finite = a[a.isfinite()]
        worst = max(worst, difference / max(float(finite.abs().max()) if finite.numel() else 0.0, 1e-30))
    return worst


def difference(a: Run, b: Run) -> dict[str, float]:
    """Relative differences of outputs, input gradients and buffers that both have."""
    common = [name for name in a.buffers if name in b.buffers]  # pairs take the place of some
    return {
        "output": relative(a.outputs, b.outputs),
        "gradient": relative(a.gradients, b.gradients),
        "buffers": relative([a.buffers[n] for n in common], [b.buffers[n] for n in common]),
    }


def is_finite(one: Run) -> bool:
    """Whether every output and gradient is a number, and some output is not nil."""
    tensors: list[Any] = [*one.outputs, *one.gradients]
    return (
        bool(one.outputs)
        and all(bool(t.isfinite().all()) for t in tensors)
        and any(bool((t != 0).any()) for t in one.outputs)
    )


def last_bit(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Every number moved to the next one up that its type has: what a network makes of the difference is its noise."""
    return tuple(x.nextafter(torch.full_like(x, torch.inf)) if x.is_floating_point() else x for x in inputs)
