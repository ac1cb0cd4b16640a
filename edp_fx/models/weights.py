"""Weights from a file of one's own: safetensors, or a PyTorch file read as weights only (no code is run)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edp_fx.errors import ModelError, one_line

_HOMES = ("state_dict", "model_state_dict", "model", "net", "module")  # where training scripts put the weights
_PREFIXES = ("module.", "_orig_mod.", "model.")  # what DataParallel, torch.compile and Lightning put before names


def load_weights(model: nn.Module, file: Path, num_classes: int | None = None) -> list[str]:
    """Load ``file`` into ``model``, strictly.

    Args:
        model: changed in place, or not at all.
        file: ``.safetensors``, or anything :func:`torch.load` reads with ``weights_only=True``: the weights by name,
            or a dictionary that holds them as ``state_dict`` or ``model``.
        num_classes: where given, a classifier for another number of classes stays as it is.

    Returns:
        Names of what stays as it is.

    Raises:
        ModelError: the file cannot be read, or names what does not fit.
    """
    if not file.is_file():
        raise ModelError(f"--weights {file}: no such file")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(str(file))
        else:
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = one_line(error)
        if "weights_only" in str(error) or "Unsupported" in str(error):
            reason = "it holds more than weights; save model.state_dict() alone, or as safetensors"
        raise ModelError(f"--weights {file}: cannot be read: {reason}") from error
    return load_state(model, _tensors(found, file), f"--weights {file}", num_classes)


def _tensors(found: Any, file: Path) -> dict[str, Tensor]:
    """The weights by name, wherever in the file they are."""
    while isinstance(found, Mapping) and not any(isinstance(one, Tensor) for one in found.values()):
        home = next((key for key in _HOMES if isinstance(found.get(key), Mapping)), None)
        if home is None:
            break
        found = found[home]
    state = (
        {str(key): one for key, one in found.items() if isinstance(one, Tensor)} if isinstance(found, Mapping) else {}
    )
    if not state:
        raise ModelError(f"--weights {file}: no weights by name in it")
    return state


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str, num_classes: int | None) -> list[str]:
    """Load weights by name, strictly but for a classifier of other classes; see :func:`load_weights`."""
    known = model.state_dict()
    names = dict(state)
    for prefix in _PREFIXES:
        if not known.keys() & names.keys() and all(key.startswith(prefix) for key in names):
            names = {key.removeprefix(prefix): one for key, one in names.items()}
    missing = [key for key in known if key not in names and not key.endswith("num_batches_tracked")]
    unknown = [key for key in names if key not in known]
    for wrong, what in ((missing, "not in the file"), (unknown, "not in the model")):
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise ModelError(f"{source}: {', '.join(wrong[:3])}{more}: {what}; is it a file of this model?")
    other = [key for key, one in names.items() if one.shape != known[key].shape]
    left = [key for key in other if _is_classifier(known[key], names[key], num_classes)]
    odd = [key for key in other if key not in left]
    if odd:
        have, want = tuple(names[odd[0]].shape), tuple(known[odd[0]].shape)
        raise ModelError(f"{source}: {odd[0]} is {have}, the model's {want}; is it a file of this model?")
    model.load_state_dict({key: one for key, one in names.items() if key not in left}, strict=False)
    return left


def _is_classifier(mine: Tensor, theirs: Tensor, num_classes: int | None) -> bool:
    """Whether two shapes differ by the number of classes alone."""
    same = mine.dim() == theirs.dim() and mine.shape[1:] == theirs.shape[1:]
    return num_classes is not None and same and mine.dim() > 0 and mine.shape[0] == num_classes
