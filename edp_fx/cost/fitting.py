"""Measuring a device: layers of many sizes are timed on a runtime, and its few numbers fitted to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edp_fx.channels import analyze
from edp_fx.cost.device import BYTES, Device
from edp_fx.cost.launches import launch_terms
from edp_fx.cost.terms import Term
from edp_fx.cost.times import Times
from edp_fx.frontend import trace
from edp_fx.latency.runtimes import Runtime

Floats = NDArray[np.float64]
FITTED = ("convolution", "matrices", "depthwise", "memory", "launch")
SECONDS = 20.0  # of timing for all probes together
DEPTH = 4  # layers one behind the other: one alone would be timed with the input's way in


@dataclass(frozen=True)
class Probe:
    """What was timed, and what the fitted device says of it, in milliseconds."""

    what: str
    measured: float
    fitted: float

    @property
    def residual(self) -> float:
        """Fitted over measured, less 1."""
        return self.fitted / self.measured - 1


def _chain(make: Callable[[int], nn.Module], channels: int) -> nn.Module:
    return nn.Sequential(*(make(channels) for _ in range(DEPTH))).eval()


def _three(channels: int) -> nn.Module:
    return nn.Conv2d(channels, channels, 3, padding=1)


def _one(channels: int) -> nn.Module:
    return nn.Conv2d(channels, channels, 1)


def _depthwise(channels: int) -> nn.Module:
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels)


def _linear(width: int) -> nn.Module:
    return nn.Linear(width, width)


def _pooling(channels: int) -> nn.Module:
    return nn.AvgPool2d(3, 1, 1)


def _gelu(width: int) -> nn.Module:
    return nn.GELU()


IMAGES: dict[str, tuple[Callable[[int], nn.Module], tuple[tuple[int, int], ...]]] = {
    "3x3": (_three, ((64, 56), (128, 28), (256, 14), (512, 7), (96, 28))),
    "1x1": (_one, ((64, 56), (256, 28), (512, 14), (1024, 7))),
    "depthwise 3x3": (_depthwise, ((96, 56), (384, 14), (576, 14))),
    "pooling": (_pooling, ((64, 56), (256, 28))),
}
TOKENS: dict[str, tuple[Callable[[int], nn.Module], tuple[tuple[int, int], ...]]] = {
    "linear": (_linear, ((192, 197), (384, 197), (768, 197), (512, 1))),
    "gelu": (_gelu, ((384, 197), (64, 49))),
}
"""Sort of layer -> (channels, side in pixels), or (width, tokens)."""


def probes() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Name -> a network of one sort of layer, and the shape of one image to it."""
    found: dict[str, tuple[nn.Module, tuple[int, ...]]] = {}
    for sort, (make, sizes) in IMAGES.items():
        for channels, side in sizes:
            found[f"{sort}, {channels} channels, {side} px"] = _chain(make, channels), (channels, side, side)
    for sort, (make, sizes) in TOKENS.items():
        for width, tokens in sizes:
            found[f"{sort}, {width} wide, {tokens} tokens"] = _chain(make, width), (tokens, width)
    return found


def measure_device(
    name: str,
    runtime: Runtime,
    precision: str = "fp32",
    batch: int = 1,
    tiles: Sequence[tuple[int, int]] = ((8, 1),),
    say: Callable[[str], None] | None = None,
) -> tuple[Device, list[Probe]]:
    """Time the probes under a runtime and fit a device to them.

    Args:
        name: of the device.
        runtime: times; its own device is what is measured.
        precision: that it computes in.
        batch: images a call.
        tiles: (outputs, inputs) of a block to choose from.
        say: told of each probe.

    Returns:
        The device whose peak and bandwidth are the highest rates seen, and what it says of every probe.

    Raises:
        LoweringError: the runtime cannot take a probe.
    """
    hardware = "cpu" if runtime.device == "cpu" else runtime.device
    start = Device(name, hardware, runtime.name, precision, peak=1.0, bandwidth=1.0, threads=runtime.threads)
    terms: list[list[Term]] = []
    networks: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {}
    torch.manual_seed(0)
    for what, (network, shape) in probes().items():
        example = torch.randn(batch, *shape)
        gm = trace(network, example)
        plain, _ = launch_terms(gm, analyze(gm, example), start.fuses, batch, start.attention)
        terms.append(plain)
        networks[what] = gm, (example,)
    measured = _timed(networks, runtime, say or (lambda line: None))
    macs = np.array([sum(term.cost({}) for term in plain) for plain in terms])
    moved = np.array([_bytes(plain, precision) for plain in terms])
    start = start.changed(peak=float((macs / measured).max() / 1e9), bandwidth=float((moved / measured).max() / 1e6))
    best: tuple[float, Device, Floats] | None = None
    for outputs, inputs in tiles:
        device, fitted, loss = fit(start.changed(tile_outputs=outputs, tile_inputs=inputs), terms, measured)
        if best is None or loss < best[0]:
            best = loss, device, fitted
    assert best is not None
    device = best[1].changed(fitted=FITTED, source=f"edp-fx device measure, {batch} images a call")
    return device, [Probe(*row) for row in zip(networks, measured.tolist(), best[2].tolist(), strict=True)]


def _timed(
    networks: Mapping[str, tuple[nn.Module, tuple[Tensor, ...]]], runtime: Runtime, say: Callable[[str], None]
) -> Floats:
    """Milliseconds of a call of each, in turns where the runtime can: lower quartiles, as what else a machine does only
    adds."""
    from edp_fx.lowering.latency import in_turns

    if runtime.ready is None:
        return np.array([runtime.time(*given) for given in networks.values()])
    calls = {}
    for what, given in networks.items():
        calls[what] = runtime.ready(*given)
        say(f"{what}: ready")
    say(f"timing {len(calls)} networks in turns")
    times = in_turns(calls, seconds=SECONDS, min_runs=9, warmup=2, clock=runtime.clock)
    return np.array([np.percentile(each, 25) for each in times.values()])


def fit(start: Device, terms: Sequence[list[Term]], measured: Floats) -> tuple[Device, Floats, float]:
    """``start`` with the five :data:`FITTED` of least squared logarithms of fitted over measured milliseconds.

    Args:
        start: its other fields stay.
        terms: launches of each network measured.
        measured: milliseconds of each.

    Returns:
        The device, its milliseconds of each network, and the mean square.
    """
    from scipy.optimize import least_squares

    ready = [Times.made(plain, start) for plain in terms]
    counts = [np.array([*(axis.whole for axis in one.axes), 1.0]) for one in ready]

    def device_of(values: Floats) -> Device:
        numbers = np.exp(np.clip(values, -12, 12))
        return start.changed(**dict(zip(FITTED, (float(number) for number in numbers), strict=True)))

    def predicted(device: Device) -> Floats:
        return np.array([one.on(device).of(count).sum() for one, count in zip(ready, counts, strict=True)])

    def residuals(values: Floats) -> Floats:
        return np.log(predicted(device_of(values)) / measured)

    shortest = 1e3 * float(measured.min()) / DEPTH  # microseconds a layer
    starts = [np.log([0.7, 0.7, 0.1, 1.0, max(1e-3, share * shortest)]) for share in (0.9, 0.3, 0.03)]
    found = min((least_squares(residuals, one, diff_step=1e-3) for one in starts), key=lambda one: float(one.cost))
    device = device_of(found.x)
    rounded = {name: float(f"{getattr(device, name):.4g}") for name in (*FITTED, "peak", "bandwidth")}
    device = device.changed(**rounded)
    return device, predicted(device), float(2 * found.cost / len(measured))


def _bytes(terms: list[Term], precision: str) -> float:
    sizes = [size for term in terms if term.work is not None for size in term.work.traffic]
    return BYTES[precision] * sum(size.constant * math.prod(axis.whole for axis in size.axes) for size in sizes)
