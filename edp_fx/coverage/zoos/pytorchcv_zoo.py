"""pytorchcv: a small model of each of forty classes, for classification and segmentation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_MODELS = {  # image size in pixels where it is not 64
    "airnet50_1x64d_r16": 224,
    "bagnet9": 224,
    "bam_resnet18": 224,
    "bninception": 224,
    "cbam_resnet18": 224,
    "channelnet": 224,
    "condensenet74_c4_g4": 224,
    "dabnet_cityscapes": 64,
    "densenet40_k12_cifar10": 32,
    "diaresnet20_cifar10": 32,
    "dicenet_wd5": 224,
    "dla34": 224,
    "drnd22": 224,
    "edanet_cityscapes": 64,
    "efficientnet_b0": 224,
    "enet_cityscapes": 64,
    "erfnet_cityscapes": 64,
    "espnetv2_wd2": 224,
    "fbnet_cb": 224,
    "fishnet99": 224,
    "ghostnet": 224,
    "hardnet39ds": 224,
    "ibn_resnet50": 224,
    "igcv3_wd4": 224,
    "linknet_cityscapes": 64,
    "menet108_8x1_g3": 224,
    "mixnet_s": 224,
    "mnasnet_small": 224,
    "mobilenet_wd4": 224,
    "mobilenetv3_small_w7d20": 224,
    "octresnet10_ad2": 224,
    "peleenet": 224,
    "preresnet20_cifar10": 32,
    "proxylessnas_mobile": 224,
    "pyramidnet110_a48_cifar10": 32,
    "regnetx002": 224,
    "resnet20_cifar10": 32,
    "rir_cifar10": 32,
    "selecsls42b": 224,
    "seresnet20_cifar10": 32,
    "shakeshakeresnet20_2x16d_cifar10": 32,
    "sharesnet18": 224,
    "shufflenet_g3_wd4": 224,
    "shufflenetv2_wd2": 224,
    "sinet_cityscapes": 128,
    "sqnxt23_w1": 224,
    "squeezenet_v1_1": 224,
    "unet_cityscapes": 64,
    "vovnet27s": 224,
    "xdensenet40_2_k24_bc_cifar10": 32,
}


def names() -> list[str]:
    """The models that are swept."""
    return list(_MODELS)


def build(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A model with random weights and a batch of two images."""
    from pytorchcv.model_provider import get_model

    size = _MODELS.get(name, 224)
    options = {"in_size": (size, size)} if size == 64 else {}
    try:
        model = get_model(name, pretrained=False, **options)
    except TypeError:
        model = get_model(name, pretrained=False)
    for name, buffer in model.named_buffers():
        if name.endswith(".index"):  # which channels CondenseNet learned to read; untrained, all read the first
            buffer.copy_(torch.randperm(len(buffer)))
    return model, (torch.randn(2, 3, size, size),)
