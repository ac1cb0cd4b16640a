"""Faster R-CNN (torchvision): its backbone shrinks inside a detection loop of one's own.

    python examples/faster_rcnn.py --steps 20            # random pictures, to see it run
    python examples/faster_rcnn.py --coco COCO --steps 90000

The graph module is changed in place, so the detector goes on using it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
import torchvision
from torch import Tensor

import edp_fx
from edp_fx.compressor import Budget, Compressor, parameter_groups

Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


def random_batches(size: int, count: int) -> Iterator[Batch]:
    """Noise with one box each."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        images = list(torch.rand(2, 3, size, size, generator=generator))
        box = torch.tensor([[size * 0.2, size * 0.2, size * 0.7, size * 0.8]])
        yield images, [{"boxes": box, "labels": torch.tensor([1])} for _ in images]


def coco_batches(root: str, count: int) -> Iterator[Batch]:
    """Images of COCO's train2017 with their boxes."""
    from torchvision.datasets import CocoDetection, wrap_dataset_for_dataset_v2
    from torchvision.transforms import v2

    data = CocoDetection(
        f"{root}/train2017",
        f"{root}/annotations/instances_train2017.json",
        transforms=v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]),
    )
    data = wrap_dataset_for_dataset_v2(data, target_keys=("boxes", "labels"))
    loader = torch.utils.data.DataLoader(
        data, batch_size=4, shuffle=True, num_workers=8, collate_fn=lambda rows: tuple(zip(*rows))
    )
    done = 0
    while done < count:
        for images, targets in loader:
            kept = [pair for pair in zip(images, targets) if "boxes" in pair[1]]
            if kept and done < count:
                done += 1
                yield [image for image, _ in kept], [target for _, target in kept]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fasterrcnn_mobilenet_v3_large_320_fpn")
    parser.add_argument("--coco")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--macs", type=float, default=0.6)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--lr", type=float, default=1e-3)
    options = parser.parse_args()

    builder = torchvision.models.get_model_builder(options.model)
    detector = builder(weights=None, weights_backbone=None, num_classes=91)
    images = torch.randn(1, 3, options.size, options.size)
    dense = edp_fx.measure(detector.backbone, images).macs
    backbone = edp_fx.insert(edp_fx.trace(detector.backbone, images))
    detector.backbone = backbone

    optimizer = torch.optim.SGD(parameter_groups(detector, 1e-4), lr=options.lr, momentum=0.9)
    compressor = Compressor(
        backbone, images, budget=Budget(macs=options.macs), optimizer=optimizer, total_steps=options.steps
    )
    detector.train()
    count = options.steps
    batches = coco_batches(options.coco, count) if options.coco else random_batches(options.size, count)
    for step, (pictures, targets) in enumerate(batches, 1):
        loss = sum(detector(pictures, targets).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        compressor.step()
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.3f}, backbone at {compressor.macs:.3f} of its MACs")
    detector.backbone = compressor.finish()
    share = edp_fx.measure(detector.backbone, images).macs / dense
    print(f"backbone: {share:.3f} of its MACs; pruning and merging changed it by {compressor.max_rel_diff:.1e}")


if __name__ == "__main__":
    main()
