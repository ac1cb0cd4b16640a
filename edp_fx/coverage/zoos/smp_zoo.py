"""segmentation-models-pytorch: every architecture with three encoders."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_ARCHITECTURES = (
    "DPT", "DeepLabV3", "DeepLabV3Plus", "FPN", "Linknet", "MAnet", "PAN", "PSPNet", "Segformer", "UPerNet", "Unet",
    "UnetPlusPlus",
)  # fmt: skip
_ENCODERS = ("resnet18", "efficientnet-b0", "timm-mobilenetv3_small_100")
_OF_DPT = ("tu-vit_tiny_patch16_224", "tu-deit_tiny_patch16_224", "tu-test_vit")  # it takes transformers only
_SIZE = 64  # pixels
_SIZES = {"PAN": 128}  # it halves the image seven times


def names() -> list[str]:
    """Architecture and encoder."""
    return [f"{a}/{e}" for a in _ARCHITECTURES for e in (_OF_DPT if a == "DPT" else _ENCODERS)]


def build(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A model with random weights and a batch of two images."""
    import segmentation_models_pytorch as smp

    architecture, encoder = name.split("/")
    size = _SIZES.get(architecture, _SIZE)
    options = {"dynamic_img_size": True} if architecture == "DPT" else {}
    model = getattr(smp, architecture)(encoder_name=encoder, encoder_weights=None, classes=4, **options)
    return model, (torch.randn(2, 3, size, size),)
