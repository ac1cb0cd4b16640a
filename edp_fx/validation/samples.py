"""What a network is run on to be compared: few and small inputs, and weights behind which nothing can hide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edp_fx.inputs import COMPUTE_LAYERS, eval_mode
from edp_fx.leaves import tensors_of

BATCH = 2
_SIDES = (64, 128)


def random_inputs(
    like: Sequence[Tensor], device: torch.device, side: int | None = None, batch: int = BATCH
) -> tuple[Tensor, ...]:
    """Random tensors of the shapes and dtypes of ``like`` (which may have no data), of at most ``batch`` samples.

    Whole numbers are 0 or 1: an index that any table has. ``side``: images of so many pixels a side.
    """
    generator = torch.Generator().manual_seed(0)
    batches = {one.shape[0] for one in like if one.ndim}
    made = []
    for one in like:
        shape = list(one.shape)
        if shape and len(batches) == 1:
            shape[0] = batch if batch != BATCH or one.ndim == 4 else min(shape[0], BATCH)
        if side is not None and one.ndim == 4:
            shape[2:] = [min(side, size) for size in shape[2:]]
        if one.dtype.is_floating_point or one.dtype.is_complex:
            value = torch.randn(shape, generator=generator).to(one.dtype)
        else:
            value = torch.randint(0, 2, shape, generator=generator).to(one.dtype)
        made.append(value.to(device))
    return tuple(made)


def first_samples(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The first two of a batch."""
    batches = {one.shape[0] for one in inputs if one.ndim}
    return tuple(one[:BATCH] if one.ndim and len(batches) == 1 else one for one in inputs)


def smaller_inputs(
    like: Sequence[Tensor], device: torch.device, batches: Sequence[int] = (BATCH,)
) -> Iterator[tuple[Tensor, ...]]:
    """Random inputs of small images, then of the size of ``like``: to be tried one after the other, since not every
    network runs on images of another size, or on another batch."""
    sides = [side for side in _SIDES if any(one.ndim == 4 and min(one.shape[2:]) > 1.5 * side for one in like)]
    for batch in batches:
        for side in (*sides, None):
            yield random_inputs(like, device, side, batch)


def other_batches(like: Sequence[Tensor]) -> tuple[int, ...]:
    """Batches to try, first one that ``like`` is not of: numbers that were computed from its batch show up then."""
    traced = any(one.ndim and one.shape[0] == BATCH for one in like)
    return (BATCH + 1, BATCH) if traced else (BATCH,)


def tell(given: Sequence[Tensor]) -> bool:
    """Whether something can be seen by these outputs: a number, or some that are finite and not all alike."""
    for one in given:
        finite = one[one.isfinite()] if one.is_floating_point() else one.flatten()
        if finite.numel() and (one.numel() == 1 or bool((finite != finite[0]).any())):
            return True
    return False


def placeholders(gm: fx.GraphModule) -> list[Tensor]:
    """What the graph was traced on, without data."""
    given = [node.meta.get("val") for node in gm.graph.nodes if node.op == "placeholder"]
    return [one for one in given if isinstance(one, Tensor)]


@contextmanager
def whole_float32() -> Iterator[None]:
    """Within it a GPU computes float32 as such; by themselves its convolutions, and where the user allows it its matrix
    products, round to TF32, layers of other widths by other kernels."""
    backends = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


@torch.no_grad()
def outputs(model: nn.Module, inputs: Sequence[Tensor], seed: int = 0) -> list[Tensor]:
    """All floating point tensors a model gives in evaluation mode, in whole float32.

    Its modes, attributes and buffers, and torch's random numbers, are put back.
    """
    buffers = [(buffer, buffer._version, buffer.clone()) for buffer in model.buffers()]
    devices = [one.device for one in inputs if one.is_cuda][:1]
    try:
        with eval_mode(model), whole_float32(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            result = tensors_of(nn.Module.__call__(model, *inputs))  # a graph's own prints where it fails
    finally:
        for buffer, version, before in buffers:
            if buffer._version != version:
                buffer.copy_(before)
    single = (torch.float16, torch.bfloat16)
    return [one.detach().float() if one.dtype in single else one.detach() for one in result if one.is_floating_point()]


def hidden(model: nn.Module) -> dict[int, Tensor]:
    """By id, random values for parameters and buffers that are all alike, as an initialisation leaves them: behind a
    norm that multiplies by 0 anything may happen unseen. The weights of layers are not among them."""
    generator = torch.Generator().manual_seed(0)
    found: dict[int, Tensor] = {}
    for module in model.modules():
        for name, value in (*module._parameters.items(), *module._buffers.items()):
            if value is None or id(value) in found or not value.is_floating_point() or value.is_meta:
                continue
            if value.numel() < 2 or (isinstance(module, COMPUTE_LAYERS) and name == "weight"):
                continue
            low, high = value.detach().aminmax()
            if low == high:
                random = torch.rand(value.shape, generator=generator).to(value)
                found[id(value)] = random + 0.5 if low != 0 else 0.4 * random - 0.2
    return found


def calibrate(gm: fx.GraphModule, inputs: Sequence[Tensor]) -> fx.GraphModule:
    """Set batch-norm statistics to those of one batch: with random ones little of the input reaches a deep output."""
    if any(_batch_norms(gm)):
        calibrating_outputs(gm, inputs)
    return gm.eval()


def calibrating_outputs(gm: fx.GraphModule, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Calibrate, and give the outputs of that run."""
    norms = list(_batch_norms(gm))
    with eval_mode(gm), torch.no_grad(), torch.random.fork_rng(devices=[]):
        for norm in norms:
            norm.training = True
            norm.momentum = 1.0
        torch.manual_seed(0)
        given = tensors_of(nn.Module.__call__(gm, *inputs))
    for norm in norms:
        if norm.running_var is not None:
            norm.running_var.clamp_(min=1e-3)
    return given


def _batch_norms(gm: fx.GraphModule) -> Iterator[_BatchNorm]:
    return (one for one in gm.modules() if isinstance(one, _BatchNorm) and one.track_running_stats)
