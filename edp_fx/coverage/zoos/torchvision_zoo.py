"""torchvision's detectors: what is a network in them, as one module.

A detector takes a list of images of any size and gives lists of boxes; what lies between is the backbone with its
feature pyramid and the dense head (region proposals, or classes and boxes of every anchor), which is what is traced,
compressed and put back into the detector. Resizing, anchors, suppression and the heads of single regions are not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_DETECTORS = (
    "fasterrcnn_mobilenet_v3_large_320_fpn", "fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2", "fcos_resnet50_fpn", "keypointrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2", "retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
)  # fmt: skip
_SIZES = {"ssd300_vgg16": 300}
_SIZE = 64


class DenseDetector(nn.Module):
    """Backbone and dense head of a detector: images [N, 3, H, W] to the head's outputs."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone: Any = detector.backbone
        rpn: Any = getattr(detector, "rpn", detector)
        self.head: Any = rpn.head

    def forward(self, images: Tensor) -> Any:
        """Logits and box offsets of every anchor, in the head's own form."""
        features = self.backbone(images)
        return self.head(list(features.values()) if isinstance(features, dict) else [features])


def names() -> list[str]:
    """The detectors."""
    return list(_DETECTORS)


def build(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network of a detector with random weights and a batch of two images."""
    from torchvision.models import get_model

    size = _SIZES.get(name, _SIZE)
    return DenseDetector(get_model(name, weights=None, weights_backbone=None)), (torch.randn(2, 3, size, size),)
