"""What compression costs while it trains: step time and memory of the plain network, the pairs, and with a
compressor.

    python -m benchmarks.training --out benchmarks/results/training.jsonl
    python -m benchmarks.training --whole-run --networks resnet20 vgg16_bn      # seconds of whole runs

All of a network's variants are timed in turns in one process; the medians are compared. Memory is what
autograd saves for the backward pass plus parameters, gradients and optimiser state, in bytes; on a GPU the
allocator's peak.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import edp_fx
from edp_fx.compressor import Budget, Compressor
from edp_fx.train import Recipe, Trainer

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import networks

# network: how it is made, side of the images, batch
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "resnet20": (networks.resnet20, 32, 128),
    "vgg16_bn": (networks.vgg16_bn, 32, 64),
    "resnet50": (lambda: timm.create_model("resnet50", num_classes=10), 128, 32),
    "mobilenetv2": (lambda: timm.create_model("mobilenetv2_100", num_classes=10), 128, 32),
    "vit_tiny": (lambda: timm.create_model("vit_tiny_patch16_224", num_classes=10), 224, 32),
}


class Variant:
    """One network with its optimiser."""

    def __init__(self, model: nn.Module, device: torch.device, compress: bool = False, inputs: Any = None) -> None:
        self.model = model.to(device)
        self.compressor: Compressor | None = None
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        if compress:  # every step accumulates; nothing is decided while it is timed
            self.compressor = Compressor(
                model,
                inputs,
                budget=Budget(macs=0.3),
                optimizer=self.optimizer,
                total_steps=10**6,
                kinds=("rank", "channel"),
                start=0.5,
                end=0.9,
            )
        self.saved = 0

    def step(self, images: Tensor, labels: Tensor) -> None:
        loss = F.cross_entropy(self.model(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.compressor is not None:
            self.compressor.step()

    def memory(self, images: Tensor, labels: Tensor) -> int:
        if images.is_cuda:
            torch.cuda.reset_peak_memory_stats()
            self.step(images, labels)
            return torch.cuda.max_memory_allocated()
        seen: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = F.cross_entropy(self.model(images), labels)
        weights = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in self.model.parameters()}
        del loss
        return sum(size for key, size in seen.items() if key not in weights) + 3 * sum(weights.values())


def steps(name: str, repeats: int, device: torch.device) -> dict[str, Any]:
    """Median seconds a step and memory of the three variants."""
    make, side, batch = NETWORKS[name]
    images = torch.randn(batch, 3, side, side, device=device)
    labels = torch.arange(batch, device=device) % 10
    example = images[:2]

    def pairs() -> Any:
        return edp_fx.insert(edp_fx.trace(make(), example.cpu())).to(device)

    variants = {"plain": Variant(make(), device), "compressor": Variant(pairs(), device, True, example)}
    times: dict[str, list[float]] = {key: [] for key in variants}
    memory = {key: variant.memory(images, labels) for key, variant in variants.items()}
    for number in range(repeats + 2):
        for key, variant in variants.items():
            started = time.perf_counter()
            variant.step(images, labels)
            if images.is_cuda:
                torch.cuda.synchronize()
            if number >= 2:
                times[key].append(time.perf_counter() - started)
    medians = {key: statistics.median(values) for key, values in times.items()}
    return {
        "network": name,
        "batch": batch,
        "image": side,
        "device": device.type,
        "seconds_per_step": medians,
        "step_ratio": medians["compressor"] / medians["plain"],
        "bytes": memory,
        "memory_ratio": memory["compressor"] / memory["plain"],
    }


def whole_run(name: str, epochs: int, images: int, macs: float, batch: int | None) -> dict[str, Any]:
    """Seconds of a plain and of a compressed run of the same epochs on random images, in turns by halves."""
    from edp_fx.data import ArrayDataset, make_loader

    make, side, usual = NETWORKS[name]
    batch = batch or usual
    generator = torch.Generator().manual_seed(0)
    data = ArrayDataset(
        torch.rand(images, 1, side, side, generator=generator),
        torch.arange(images) % 10,
        mean=(0.5,),
        std=(0.3,),
    )
    loader = make_loader(data, batch, train=True)
    recipe = Recipe(epochs=epochs, optimizer="sgd", lr=0.05)
    example = torch.randn(2, 3, side, side)
    seconds: dict[str, list[float]] = {"plain": [], "compressed": []}
    for _ in range(3):
        started = time.perf_counter()
        Trainer(edp_fx.trace(make(), example), loader, recipe).run()
        seconds["plain"].append(time.perf_counter() - started)
        started = time.perf_counter()
        edp_fx.compress(make(), loader, macs=macs, recipe=recipe)
        seconds["compressed"].append(time.perf_counter() - started)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    return {
        "network": name,
        "batch": batch,
        "epochs": epochs,
        "steps": epochs * len(loader),
        "macs": macs,
        "seconds": medians,
        "run_ratio": medians["compressed"] / medians["plain"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=tuple(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--whole-run", action="store_true")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=2560)
    parser.add_argument("--batch", type=int, help="of whole runs, where the usual one takes too long")
    parser.add_argument("--macs", type=float, default=0.3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name in options.networks:
        if options.whole_run:
            row = whole_run(name, options.epochs, options.images, options.macs, options.batch)
        else:
            row = steps(name, options.repeats, device)
        print(json.dumps(row), flush=True)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            with open(options.out, "a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
