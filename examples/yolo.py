"""A YOLO of ultralytics, called as torchvision's detectors: lists of images and targets in, losses or boxes out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edp_fx.errors import ModelError

GREY = 0.447  # of what is beside a picture that is not square
CONFIDENCE, OVERLAP = 0.001, 0.7  # of boxes that are kept: all but the unlikely, and one of those that are alike
Target = dict[str, Tensor]


class Yolo(nn.Module):
    """Its own network and loss.

    Args:
        name: of one of its configurations, such as ``yolo11n``.
        classes: how many, beside the background.
        size: pixels of the square that images are brought into; 32 divides it.

    Raises:
        ModelError: ultralytics is not installed, or has no such configuration.
    """

    def __init__(self, name: str, classes: int, size: int) -> None:
        super().__init__()
        if size % 32:
            raise ModelError(f"--size {size}: {name} takes sizes that 32 divides")
        try:
            from ultralytics.cfg import get_cfg
            from ultralytics.nn.tasks import DetectionModel
        except ImportError as error:
            raise ModelError(f"{name} is ultralytics': pip install ultralytics") from error
        try:
            self.model = DetectionModel(f"{name}.yaml", nc=classes, verbose=False)
        except FileNotFoundError as error:
            raise ModelError(f"ultralytics has no model {name!r}") from error
        self.model.args = get_cfg()  # what its loss reads
        self.size = size

    def forward(self, images: list[Tensor], targets: list[Target] | None = None) -> dict[str, Tensor] | list[Target]:
        """Losses in train mode; else boxes (x1, y1, x2, y2 in the image's pixels), scores and labels from 1 on."""
        scales = [self.size / max(image.shape[1:]) for image in images]
        batch = torch.stack([self.square(image, scale) for image, scale in zip(images, scales)])
        if not self.training:
            return self.boxes(self.model(batch)[0], scales)
        assert targets is not None
        corners = torch.cat([target["boxes"] * scale for target, scale in zip(targets, scales)]) / self.size
        counts = torch.tensor([len(target["boxes"]) for target in targets], device=batch.device)
        losses, _ = self.model(
            {
                "img": batch,
                "cls": torch.cat([target["labels"] for target in targets])[:, None].float() - 1,
                "bboxes": torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1),
                "batch_idx": torch.arange(len(images), device=batch.device).repeat_interleave(counts).float(),
            }
        )
        return {"loss": losses.sum() / len(images)}

    def square(self, image: Tensor, scale: float) -> Tensor:
        """The image in the upper left corner of a grey square."""
        height, width = (max(1, round(scale * side)) for side in image.shape[1:])
        small = F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]
        return F.pad(small, (0, self.size - width, 0, self.size - height), value=GREY)

    def boxes(self, found: Tensor, scales: list[float]) -> list[Target]:
        """What is left of all boxes."""
        from ultralytics.utils.nms import non_max_suppression

        kept = non_max_suppression(found, CONFIDENCE, OVERLAP, max_det=100)
        return [
            {"boxes": rows[:, :4] / scale, "scores": rows[:, 4], "labels": rows[:, 5].long() + 1}
            for rows, scale in zip(kept, scales)
        ]
