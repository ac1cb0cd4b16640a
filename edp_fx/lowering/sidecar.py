"""The JSON beside an engine that says what it is and where it came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edp_fx.errors import LoweringError

FORMAT = 1


def sidecar_path(path: Path) -> Path:
    """``model.plan`` -> ``model.plan.json``."""
    return path.with_name(path.name + ".json")


def weights_sha256(model: nn.Module) -> str:
    """Hash of every parameter and buffer with its name, type and shape: which checkpoint a file was made
    from.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def encode(facts: Mapping[str, Any], artefact: bytes) -> bytes:
    """The sidecar's bytes: ``facts`` and the artefact's own hash and size."""
    body = {"format": FORMAT, **facts, "bytes": len(artefact), "sha256": hashlib.sha256(artefact).hexdigest()}
    return (json.dumps(body, indent=1) + "\n").encode()


def extra(path: Path) -> dict[str, Any]:
    """What was kept beside an artefact of the model it was made of; nothing where no sidecar says."""
    try:
        facts = json.loads(sidecar_path(path).read_bytes())
    except (OSError, ValueError):
        return {}
    kept = facts.get("extra") if isinstance(facts, dict) else None
    return kept if isinstance(kept, dict) else {}


def read(path: Path) -> tuple[dict[str, Any], bytes]:
    """An artefact and its sidecar, checked against each other.

    Raises LoweringError where either is missing, is no JSON, or the artefact's bytes are not those written.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LoweringError(f"cannot read {path}: {error.strerror or error}") from error
    beside = sidecar_path(path)
    try:
        facts = json.loads(beside.read_bytes())
    except OSError as error:
        raise LoweringError(f"{beside} is missing: it is written with the engine and says how to run it") from error
    except ValueError as error:
        raise LoweringError(f"{beside} is damaged: {error}") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise LoweringError(f"{beside} is not a sidecar of format {FORMAT}: lower the model again")
    if facts.get("sha256") != hashlib.sha256(data).hexdigest():
        raise LoweringError(
            f"{path} is not the file its sidecar describes (damaged or replaced): lower the model again"
        )
    return facts, data
