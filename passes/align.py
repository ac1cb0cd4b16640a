"""Alignment: tensor cores want channel counts that are multiples of 8 (fp16) or 16 (int8)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edp_fx.channels import ChannelGraph


@dataclass(frozen=True)
class Align:
    """Multiples to round to: ``channels`` for channels and ranks alike."""

    multiple: int

    def up(self, count: int, most: int) -> int:
        """The next multiple, not above ``most``."""
        return min(most, -(-count // self.multiple) * self.multiple)

    def down(self, count: int) -> int:
        """The multiple below, at least one multiple (or ``count`` where it is smaller)."""
        return max(min(count, self.multiple), count // self.multiple * self.multiple)


def align_keep(
    graph: ChannelGraph,
    keep: Mapping[int, np.ndarray],
    align: Align,
    importance: Mapping[int, np.ndarray] | None = None,
) -> dict[int, np.ndarray]:
    """``keep`` with every count rounded up to a multiple, the most important removed elements coming back first.

    Without ``importance`` (dead elements have none) the first removed ones come back.
    """
    aligned = {}
    for group_id, kept in keep.items():
        group = graph.group(group_id)
        wanted = align.up(int(kept.sum()), group.size)
        gone = np.flatnonzero(~kept)
        if importance is not None and group_id in importance:
            gone = gone[np.argsort(-np.asarray(importance[group_id])[gone], kind="stable")]
        full = kept.copy()
        full[gone[: wanted - int(kept.sum())]] = True
        if not full.all():
            aligned[group_id] = full
    return aligned
