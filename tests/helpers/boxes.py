"""Small detectors of torchvision, and images with boxes for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model

from edp_fx.inputs import randomize_

Targets = list[dict[str, Tensor]]


def detector(name: str, classes: int = 3) -> nn.Module:
    """With random weights, statistics and gammas, for images of 64x64."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {} if name.startswith("ssd") else {"min_size": 64, "max_size": 64}
    if "rcnn" in name:
        sizes.update(rpn_pre_nms_top_n_test=20, rpn_post_nms_top_n_test=20, box_batch_size_per_image=20)
    model = get_model(name, weights=None, weights_backbone=None, num_classes=classes, **sizes)
    randomize_(model)
    return model


def images_with_boxes(count: int = 2) -> tuple[list[Tensor], Targets]:
    """So many images with a box each."""
    generator = torch.Generator().manual_seed(1)
    images = list(torch.rand(count, 3, 64, 64, generator=generator))
    box = torch.tensor([[8.0, 8.0, 44.0, 50.0]])
    return images, [{"boxes": box.clone(), "labels": torch.tensor([1])} for _ in images]
