"""A data set of detection in small: squares on noise, in Pascal VOC's files."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.io import write_jpeg

SIZE = 64


def write_voc(directory: Path, count: int = 10, names: tuple[str, ...] = ("square",)) -> Path:
    """So many images of 64x64 with a box each, of these classes in turn."""
    generator = torch.Generator().manual_seed(0)
    (directory / "images").mkdir(parents=True)
    (directory / "annotations").mkdir()
    for index in range(count):
        image = torch.randint(0, 100, (3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
        left, top = (int(one) for one in torch.randint(4, 24, (2,), generator=generator))
        image[:, top : top + 30, left : left + 30] = 220
        write_jpeg(image, str(directory / "images" / f"{index:02}.jpg"))
        write_annotation(directory, index, names[index % len(names)], (left, top, left + 30, top + 30))
    return directory


def write_annotation(directory: Path, index: int, name: str, box: tuple[int, int, int, int]) -> None:
    """One image's annotation, with one box."""
    sides = "".join(f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box))
    (directory / "annotations" / f"{index:02}.xml").write_text(
        f"<annotation><filename>{index:02}.jpg</filename><size><width>{SIZE}</width><height>{SIZE}</height></size>"
        f"<object><name>{name}</name><bndbox>{sides}</bndbox></object></annotation>"
    )
