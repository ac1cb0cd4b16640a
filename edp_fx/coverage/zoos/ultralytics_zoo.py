"""ultralytics: every task of versions 11 and 8, the smallest scale."""

from __future__ import annotations

import os
import tempfile

import torch
from torch import Tensor, nn

os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.gettempdir())  # the library writes its settings there when imported

_TASKS = {"": "Detection", "-seg": "Segmentation", "-cls": "Classification", "-pose": "Pose", "-obb": "OBB"}
_VERSIONS = ("yolo11n", "yolov8n")
_SIZE = 64


def names() -> list[str]:
    """Configurations as the library names them."""
    return [version + task for version in _VERSIONS for task in _TASKS]


def build(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A model with random weights and a batch of two images."""
    from ultralytics.nn import tasks

    task = next(kind for suffix, kind in reversed(_TASKS.items()) if name.endswith(suffix))
    model = getattr(tasks, f"{task}Model")(f"{name}.yaml", verbose=False)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model, (torch.randn(2, 3, _SIZE, _SIZE),)
