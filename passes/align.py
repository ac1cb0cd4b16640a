"""Alignment: tensor cores want channel counts that are multiples of 8 (fp16) or 16 (int8)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def align_keep(keep: Mapping[int, np.ndarray], multiple: int) -> dict[int, np.ndarray]:
    """``keep`` with every count rounded up to a multiple, or to the whole group: the first removed come back."""
    aligned = {}
    for group_id, kept in keep.items():
        count = int(kept.sum())
        full = kept.copy()
        full[np.flatnonzero(~kept)[: -count % multiple]] = True
        if not full.all():
            aligned[group_id] = full
    return aligned
