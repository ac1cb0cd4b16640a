"""Training checkpoints: one file, replaced whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from edp_fx.errors import CheckpointError, EdpError, TrainingError
from edp_fx.files import remove_leftovers, whole


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write ``state`` so that ``path`` holds either the old checkpoint or the new one, whatever happens.

    Raises:
        TrainingError: the disk is full or the directory cannot be written; the old checkpoint is intact.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        with whole(path) as part, open(part, "wb") as file:
            torch.save(state, file)
    except (EdpError, OSError, RuntimeError) as error:  # torch.save reports a failed write as RuntimeError
        kept = "the one before it is intact" if path.exists() else "there is none yet"
        raise TrainingError(f"{path}: the checkpoint could not be written ({error}); {kept}") from error


def load_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint; only tensors and plain values are unpickled.

    Raises:
        CheckpointError: missing, truncated, or not a checkpoint of training.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint") from error
    except Exception as error:
        raise CheckpointError(f"{path}: damaged checkpoint ({type(error).__name__}); train anew") from error
    if not isinstance(state, dict) or "progress" not in state:
        raise CheckpointError(f"{path}: not a training checkpoint of edp_fx")
    return state
