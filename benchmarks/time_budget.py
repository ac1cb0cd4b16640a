"""Budgets of time: what was asked, predicted and measured.

    edp-fx device measure --out DEVICE.json
    python -m benchmarks.time_budget measured --images FOLDER --device DEVICE.json
    python -m benchmarks.time_budget predicted

``measured``: networks of random weights (which do not matter to time) at 224 pixels, one image, one thread of this
machine's processor under onnxruntime, by ``edp_fx.compress(…, latency=0.5, device=DEVICE, runtime=onnxruntime,
epochs=0)``, a row for each network and seed; rows in the file are kept. DEVICE is this machine as measured before, or
one that comes with the library. ``again``: the end network timed anew against the dense one, in turns.
Beside it the network that a budget of MACs leaves which measures as long: what it keeps, and how far the outputs of
either are from those of the dense network, on images that no one saw (mean square, over the variance of the dense
network's; and for how many images both say the same class). FOLDER holds photographs; without it the images are noise.
``lite0`` is EfficientNet-Lite0 with its ImageNet weights, of the packages that ``benchmarks.without_training`` names.

``predicted``: what half of the time on a device that is not here leaves, for devices and batches; at batch 1 with whole
branches, chosen by gradients of a few steps on random images.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, fx, nn

import edp_fx
from benchmarks.rows import read, write
from benchmarks.without_training import decoded, load
from edp_fx.compressor.reconstruction import Reconstruction
from edp_fx.cost import Device, load_device
from edp_fx.cost.device import DEFAULT
from edp_fx.inputs import randomize_
from edp_fx.latency import Meter, make_runtime
from edp_fx.latency.runtimes import cpu_name

MEASURED = ("resnet18", "mobilenetv2_100", "vit_tiny_patch16_224", "resnet50")
SEEN, JUDGED = 64, 128  # images that say what matters, and others by which it is judged
TRIES, ALIKE = 4, 0.012  # of a budget of MACs to measure as long: how often, and how near is near enough
PREDICTED = ("resnet50", "mobilenetv2_100", "convnext_tiny", "regnetx_032", "vit_small_patch16_224")
COLUMNS = {
    "measured": (
        "network", "seed", "asked", "device", "predicted", "measured", "again", "missed", "dense_ms", "compressed_ms",
        "macs", "params", "error", "alike", "by_macs_time", "by_macs_macs", "by_macs_params", "by_macs_error",
        "by_macs_alike", "seconds", "images", "cpu", "torch",
    ),
    "predicted": (
        "network", "device", "runtime", "batch", "kinds", "asked", "predicted", "speedup", "macs", "params", "dense_ms",
        "compressed_ms", "branches", "seconds",
    ),
}  # fmt: skip
KEYS = ("network", "seed", "device", "runtime", "batch", "asked")
RESULTS = {"measured": "time_budget.csv", "predicted": "time_budget_devices.csv"}
IMAGES = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def made(name: str, seed: int) -> fx.GraphModule:
    """A network of random weights, as a graph."""
    return edp_fx.trace(created(name, seed), IMAGES)


def kinds_of(name: str) -> tuple[str, ...]:
    """What may go of it without training."""
    return ("channel", "head") if "vit" in name else ("channel",)


def pictures(folder: Path | None, seed: int) -> tuple[Tensor, Tensor]:
    """Images that methods see [SEEN, 3, 224, 224], and others to judge by [JUDGED, 3, 224, 224]."""
    if folder is None:
        images = torch.randn(SEEN + JUDGED, 3, 224, 224, generator=torch.Generator().manual_seed(seed))
    else:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(seed))[: SEEN + JUDGED]
        images = torch.stack([decoded(paths[number], 224) for number in order.tolist()])
    return images[:SEEN], images[SEEN:]


@torch.no_grad()
def outputs_of(network: nn.Module, images: Tensor) -> Tensor:
    """Logits [images, classes]."""
    return torch.cat([network(part) for part in images.split(8)])


def judged(got: Tensor, wanted: Tensor) -> tuple[float, float]:
    """Mean square of what outputs differ by from the dense network's, over the variance of those from image to image;
    and the share of the images of which both say the same class."""
    error = (got - wanted).square().mean() / (wanted - wanted.mean(0)).square().mean()
    return round(float(error), 4), round(float((got.argmax(1) == wanted.argmax(1)).float().mean()), 4)


def by_macs(
    model: nn.Module, seen: list[tuple[Tensor, Tensor]], meter: Meter, share: float, macs: float
) -> tuple[fx.GraphModule, float]:
    """What a budget of MACs leaves that measures ``share`` of the dense network's time, and what it does measure; the
    first try is ``macs``."""
    weighed = Reconstruction.of(edp_fx.trace(copy.deepcopy(model), IMAGES), [(images,) for images, _ in seen])
    method = edp_fx.Method.preset("one-shot", importance=weighed)
    best: tuple[float, float, float] | None = None
    for _ in range(TRIES):
        gm = edp_fx.trace(copy.deepcopy(model), IMAGES)
        measured = meter.compare(edp_fx.Compressor(gm, IMAGES, method.changed(macs=macs)).finish()).share
        miss = abs(math.log(measured / share))
        if best is None or miss < best[0]:
            best = miss, macs, measured
        if miss < ALIKE:
            break
        macs = min(0.99, macs * share / measured)
    assert best is not None
    return edp_fx.compress(model, seen, epochs=0, macs=best[1]), best[2]


def created(network: str, seed: int) -> nn.Module:
    """A network of random weights, or ``lite0`` with its own."""
    if network == "lite0":
        return load(network)[0]
    torch.manual_seed(seed)
    model: nn.Module = timm.create_model(network).eval()
    randomize_(model, seed)
    return model


def measured_row(network: str, seed: int, asked: float, folder: Path | None, device: Device) -> dict[str, Any]:
    """Compress to a share of the time, and by MACs to as much, and measure."""
    model = created(network, seed)
    images, others = pictures(folder, seed)
    seen = [(part, torch.zeros(len(part), dtype=torch.long)) for part in images.split(8)]
    runtime = make_runtime("onnxruntime")
    started = time.perf_counter()
    small = edp_fx.compress(model, seen, epochs=0, latency=asked, device=device, runtime=runtime)
    seconds = time.perf_counter() - started
    told = small.meta["edp_fx.run"]["timing"]
    meter = Meter(runtime, 1, edp_fx.trace(model, IMAGES), IMAGES)
    again = meter.compare(small)
    before, after = edp_fx.measure(model, IMAGES), edp_fx.measure(small, IMAGES)
    other, other_time = by_macs(model, seen, meter, again.share, after.macs / before.macs)
    less = edp_fx.measure(other, IMAGES)
    wanted = outputs_of(model, others)
    (error, alike), (other_error, other_alike) = (judged(outputs_of(one, others), wanted) for one in (small, other))
    return {
        "network": network,
        "seed": seed,
        "asked": asked,
        "device": device.name,
        "predicted": round(told["predicted"], 4),
        "measured": round(told["measured"], 4),
        "again": round(again.share, 4),
        "missed": round(again.share / asked - 1, 4),
        "dense_ms": round(again.dense_ms, 3),
        "compressed_ms": round(again.small_ms, 3),
        "macs": round(after.macs / before.macs, 4),
        "params": round(after.params / before.params, 4),
        "error": error,
        "alike": alike,
        "by_macs_time": round(other_time, 4),
        "by_macs_macs": round(less.macs / before.macs, 4),
        "by_macs_params": round(less.params / before.params, 4),
        "by_macs_error": other_error,
        "by_macs_alike": other_alike,
        "seconds": round(seconds, 1),
        "images": "noise" if folder is None else "photographs",
        "cpu": cpu_name(),
        "torch": torch.__version__,
    }


def predicted_row(network: str, device: str, runtime: str, batch: int, asked: float) -> dict[str, Any]:
    """Compress to a share of the time on a device that is not here."""
    started = time.perf_counter()
    gm = made(network, 0)
    before = edp_fx.measure(gm, IMAGES)
    one = load_device(device).under(runtime)
    small, compressor = (_trained if batch == 1 else _untrained)(gm, network, one, batch, asked)
    after = edp_fx.measure(small, IMAGES)
    gone = [report for report in small.meta["edp_fx.reports"] if report.name == "drop_branches"]
    return {
        "network": network,
        "device": device,
        "runtime": runtime,
        "batch": batch,
        "kinds": ",".join(compressor.method.kinds or ()),
        "asked": asked,
        "predicted": round(compressor.now / compressor.dense, 4),
        "speedup": round(compressor.dense / compressor.now, 3),
        "macs": round(after.macs / before.macs, 4),
        "params": round(after.params / before.params, 4),
        "dense_ms": round(compressor.dense, 4),
        "compressed_ms": round(compressor.now, 4),
        "branches": sum(len(report.rewritten) for report in gone),
        "seconds": round(time.perf_counter() - started, 1),
    }


def _untrained(
    gm: fx.GraphModule, name: str, device: Any, batch: int, asked: float
) -> tuple[fx.GraphModule, edp_fx.Compressor]:
    inexact = "vit" in name or "convnext" in name
    compressor = edp_fx.Compressor(
        gm,
        IMAGES,
        budget=edp_fx.Budget(latency=asked, device=device, batch=batch),
        importance="norm",
        kinds=kinds_of(name),
        allow_inexact=inexact,
    )
    return compressor.finish(), compressor


def _trained(
    gm: fx.GraphModule, name: str, device: Any, batch: int, asked: float, steps: int = 4
) -> tuple[fx.GraphModule, edp_fx.Compressor]:
    """Whole branches are weighed by gradients."""
    optimizer = torch.optim.SGD(gm.train().parameters(), lr=1e-4)
    budget = edp_fx.Budget(latency=asked, device=device, batch=batch)
    options: dict[str, Any] = {"start": 0.3, "end": 0.9, "decisions": 2, "removals": 1, "kinds": ("channel", "branch")}
    compressor = edp_fx.Compressor(gm, IMAGES, budget=budget, optimizer=optimizer, total_steps=steps, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(gm(torch.randn(2, 3, 224, 224)), torch.randint(1000, (2,))).backward()
        optimizer.step()
        compressor.step()
    return compressor.finish().eval(), compressor


def main() -> None:
    """Append a row for each network to the file, as each is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=list(COLUMNS))
    parser.add_argument("--networks", nargs="*")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=Path)
    parser.add_argument("--asked", type=float, default=0.5)
    parser.add_argument("--device", help="a name or file; default: cpu-onnxruntime, predicted h200-fp16")
    parser.add_argument("--runtimes", nargs="*", default=["graph", "tensorrt"])
    parser.add_argument("--batches", nargs="*", type=int, default=[64, 1])
    parser.add_argument("--out", type=Path, help="default: the file in benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    columns, asked = COLUMNS[options.section], options.asked
    out = options.out or Path(__file__).parent / "results" / RESULTS[options.section]
    rows = [row for row in read(out) if set(row) == set(columns)]  # others are of a former form
    known = {tuple(row.get(name) for name in KEYS) for row in rows}
    for made in _tasks(options, asked):
        if tuple(_key(made.keywords.get(name)) for name in KEYS) not in known:
            row = made()
            rows = [*rows, {name: str(value) for name, value in row.items()}]
            write(out, columns, rows)
            print(row, flush=True)


def _key(value: Any) -> str | None:
    """As a row has it."""
    return None if value is None else value.name if isinstance(value, Device) else str(value)


def _tasks(options: argparse.Namespace, asked: float) -> Iterator[partial[dict[str, Any]]]:
    if options.section == "measured":
        for seed in options.seeds:
            for name in options.networks or MEASURED:
                yield partial(
                    measured_row,
                    network=name,
                    seed=seed,
                    asked=asked,
                    folder=options.images,
                    device=load_device(options.device or DEFAULT),
                )
        return
    for batch in options.batches:
        for name in options.networks or PREDICTED:
            for runtime in options.runtimes:
                yield partial(
                    predicted_row,
                    network=name,
                    device=options.device or "h200-fp16",
                    runtime=runtime,
                    batch=batch,
                    asked=asked,
                )


if __name__ == "__main__":
    main()
