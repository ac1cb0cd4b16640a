"""The networks of the paper on 32x32 images: one training run each, ending at its budget.

    python examples/paper_networks.py resnet56 --data fashion-mnist --macs 0.4 --epochs 100
    python examples/paper_networks.py vgg16_bn --data torchvision:CIFAR10:data --macs 0.2 --epochs 160

SGD with Nesterov momentum, one cycle up and down, weight decay 5e-4 on matrices except coefficients.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import networks
import torch

import edp_fx
from edp_fx.data import load_data
from edp_fx.train import Recipe, RichWatcher, evaluate

NETWORKS = ("resnet20", "resnet32", "resnet56", "resnet110", "densenet40", "vgg16_bn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--macs", type=float, default=0.4)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.15)
    parser.add_argument("--mixed-precision", default="bf16" if torch.cuda.is_available() else "fp32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    data = load_data(options.data, batch_size=options.batch_size, img_size=32, seed=options.seed)
    torch.manual_seed(options.seed)
    model = getattr(networks, options.network)(data.num_classes)
    recipe = Recipe(
        epochs=options.epochs,
        optimizer="sgd",
        lr=options.lr,
        mixed_precision=options.mixed_precision,
        seed=options.seed,
    )
    small = edp_fx.compress(
        model,
        data.train,
        macs=options.macs,
        recipe=recipe,
        val_loader=data.val,
        directory=options.out,
        watcher=RichWatcher(),
    )
    images = next(iter(data.test))[0][:2]
    share = edp_fx.measure(small, images).macs / edp_fx.measure(model, images).macs
    score = evaluate(small, data.test)
    print(f"{options.network}: {share:.3f} of the MACs, test accuracy {100 * score.accuracy:.2f} %")
    if options.out:
        edp_fx.save(small, options.out)


if __name__ == "__main__":
    main()
