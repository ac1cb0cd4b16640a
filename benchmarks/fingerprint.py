"""Whether two versions of edp_fx make the same networks, bit for bit: hashes of short seeded runs.

    PYTHONPATH=OLD python benchmarks/fingerprint.py > old.txt
    PYTHONPATH=NEW python benchmarks/fingerprint.py > new.txt;  diff old.txt new.txt

Four networks, several kinds of removal, every setting named; a line is the run, its share of MACs, a hash of the
graph's code and one of all weights.
"""

from __future__ import annotations

import argparse
import hashlib
from typing import Any

import timm
import torch
from torch import nn

import edp_fx
from edp_fx.compressor import Compressor, parameter_groups
from edp_fx.inputs import randomize_
from examples import networks

STEPS = 16
KINDS = ("rank", "channel", "rank,channel,head", "channel,kernel,branch")


def model_of(name: str) -> nn.Module:
    """A small network for images of 32x32."""
    if name == "resnet":
        return networks.CifarResNet(2, width=16)
    if name == "densenet":
        return networks.CifarDenseNet(depth=13, growth=12)
    if name == "mobilenet":
        return timm.create_model("mobilenetv2_035", num_classes=10)
    return timm.create_model(
        "vit_tiny_patch16_224", num_classes=10, img_size=32, patch_size=8, depth=2, embed_dim=96, num_heads=3
    )


def options_of(kinds: str, align: int, policy: str) -> dict[str, Any]:
    """Options of a run, in the words of the version at hand."""
    options: dict[str, Any] = {"kinds": tuple(kinds.split(",")), "floor": 0.15, "align": align, "policy": policy}
    if "method" in Compressor.__init__.__code__.co_varnames:
        return {**options, "total_steps": STEPS, "start": 0.12, "end": 0.5, "decisions": 30, "removals": 4}
    from edp_fx.compressor import Schedule

    return {**options, "schedule": Schedule(STEPS, 0.12, 0.5, 30, 4)}


def run(name: str, kinds: str, align: int, macs: float, policy: str = "budget") -> str:
    """One run's line."""
    torch.manual_seed(0)
    model = model_of(name)
    randomize_(model)
    images, labels = torch.randn(STEPS, 8, 3, 32, 32), torch.randint(10, (STEPS, 8))
    gm = edp_fx.trace(model, images[0])
    if "rank" in kinds:
        gm = edp_fx.insert(gm)
    gm.train()
    optimizer = torch.optim.SGD(parameter_groups(gm, 1e-4), lr=0.05, momentum=0.9)
    budget = {"budget": edp_fx.Budget(macs=macs)} if policy == "budget" else {}
    compressor = Compressor(gm, images[0], optimizer=optimizer, **budget, **options_of(kinds, align, policy))
    for x, y in zip(images, labels, strict=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(gm(x), y).backward()
        optimizer.step()
        compressor.step()
    gm = compressor.finish()
    weights = hashlib.sha256()
    for key, value in gm.state_dict().items():
        weights.update(key.encode())
        weights.update(value.contiguous().numpy().tobytes())
    code = hashlib.sha256(gm.code.encode())
    return (
        f"{name} {kinds} align={align} {policy}: {compressor.macs:.6f} "
        f"{code.hexdigest()[:12]} {weights.hexdigest()[:16]}"
    )


def main() -> None:
    """Print a line a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet,mobilenet,vit,densenet", metavar="NAME,…")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.models.split(","):
        for kinds in KINDS:
            for align in (1, 8):
                print(run(name, kinds, align, 0.8 if kinds == "rank" else 0.5), flush=True)
        print(run(name, "rank,channel", 1, 0.5, "lambda"), flush=True)


if __name__ == "__main__":
    main()
