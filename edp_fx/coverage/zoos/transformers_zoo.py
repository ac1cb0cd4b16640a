"""transformers: twenty-five vision architectures from small configurations; nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_VIT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 64,
    "patch_size": 16,
}  # fmt: skip
_SWIN: dict[str, Any] = {
    "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "image_size": 64, "patch_size": 4,
}  # fmt: skip
_STAGES: dict[str, Any] = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1]}
_PYRAMID: dict[str, Any] = {
    "hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 4, 4],
}  # fmt: skip
_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "BeitForImageClassification": ("BeitConfig", {**_VIT, "use_relative_position_bias": True}),
    "BitForImageClassification": ("BitConfig", {**_STAGES, "embedding_size": 16, "num_groups": 8}),
    "ConvNextForImageClassification": ("ConvNextConfig", _STAGES),
    "ConvNextV2ForImageClassification": ("ConvNextV2Config", _STAGES),
    "CvtForImageClassification": ("CvtConfig", {"embed_dim": [16, 24, 32], "num_heads": [1, 2, 4], "depth": [1, 2, 3]}),
    "Data2VecVisionForImageClassification": ("Data2VecVisionConfig", _VIT),
    "DeiTForImageClassification": ("DeiTConfig", _VIT),
    "Dinov2ForImageClassification": ("Dinov2Config", _VIT),
    "Dinov2WithRegistersForImageClassification": ("Dinov2WithRegistersConfig", _VIT),
    "EfficientNetForImageClassification": (
        "EfficientNetConfig",
        {"image_size": 64, "width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640},
    ),
    "FocalNetForImageClassification": (
        "FocalNetConfig",
        {"embed_dim": 16, "depths": [1, 1, 2, 1], "image_size": 64, "focal_levels": [1, 1, 1, 1]},
    ),
    "HieraForImageClassification": (
        "HieraConfig",
        {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8], "image_size": [64, 64],
         "num_query_pool": 3},
    ),
    "IJepaForImageClassification": ("IJepaConfig", _VIT),
    "LevitForImageClassification": (
        "LevitConfig",
        {"image_size": 64, "hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1],
         "key_dim": [8, 8, 8]},
    ),
    "MobileNetV1ForImageClassification": ("MobileNetV1Config", {"depth_multiplier": 0.25, "image_size": 64}),
    "MobileNetV2ForImageClassification": ("MobileNetV2Config", {"depth_multiplier": 0.35, "image_size": 64}),
    "MobileViTForImageClassification": (
        "MobileViTConfig",
        # at 64 pixels the last attention has a single token, which queries and keys do not change
        {"image_size": 128, "hidden_sizes": [32, 48, 64], "neck_hidden_sizes": [8, 16, 24, 32, 48, 64, 96],
         "num_attention_heads": 4},
    ),
    "PoolFormerForImageClassification": ("PoolFormerConfig", _STAGES),
    "PvtForImageClassification": ("PvtConfig", {**_PYRAMID, "image_size": 64}),
    "PvtV2ForImageClassification": ("PvtV2Config", {**_PYRAMID, "image_size": 64}),
    "RegNetForImageClassification": ("RegNetConfig", {**_STAGES, "embedding_size": 16, "groups_width": 8}),
    "ResNetForImageClassification": ("ResNetConfig", {**_STAGES, "embedding_size": 16}),
    "SegformerForSemanticSegmentation": (
        "SegformerConfig", {**_PYRAMID, "decoder_hidden_size": 32},
    ),
    "SwiftFormerForImageClassification": (
        "SwiftFormerConfig", {"image_size": 64, "depths": [1, 1, 2, 1], "embed_dims": [16, 24, 32, 48]},
    ),
    "SwinForImageClassification": ("SwinConfig", _SWIN),
    "Swinv2ForImageClassification": ("Swinv2Config", _SWIN),
    "TextNetForImageClassification": ("TextNetConfig", {"image_size": [64, 64]}),
    "ViTForImageClassification": ("ViTConfig", _VIT),
    "ViTMSNForImageClassification": ("ViTMSNConfig", _VIT),
    "VivitForVideoClassification": ("VivitConfig", {**_VIT, "num_frames": 4, "tubelet_size": [2, 16, 16]}),
}  # fmt: skip


def names() -> list[str]:
    """Classes of the library."""
    return list(_MODELS)


def build(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A model with random weights and a batch of two images (of two videos for ViViT)."""
    import transformers

    config, options = _MODELS[name]
    model = getattr(transformers, name)(getattr(transformers, config)(**options, num_labels=4))
    given = options.get("image_size", 64)
    size = given[0] if isinstance(given, list) else given
    shape = (4, 3, size, size) if name.startswith("Vivit") else (3, size, size)
    return model, (torch.randn(2, *shape),)
