"""Small pictures with masks, in the folders of street scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def scenes(root: Path, counts: dict[str, int]) -> Path:
    """Pictures of 64 x 48 pixels whose left side is class 0 and dark, the right class 1 and bright, one row void."""
    rng = np.random.default_rng(0)
    for part, count in counts.items():
        (root / part).mkdir(parents=True)
        (root / f"{part}annot").mkdir()
        for number in range(count):
            mask = np.zeros((48, 64), dtype=np.uint8)
            mask[:, rng.integers(16, 48) :] = 1
            pixels = 60 + 120 * mask[..., None] + rng.integers(0, 40, (48, 64, 3), dtype=np.uint8)
            mask[0] = 11
            Image.fromarray(pixels.astype(np.uint8)).save(root / part / f"{number}.jpg")
            Image.fromarray(mask).save(root / f"{part}annot" / f"{number}.png")
    return root
