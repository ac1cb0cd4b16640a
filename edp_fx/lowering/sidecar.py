"""Files on disk: atomic writing, and the JSON beside an engine that says what it is and where it came
from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
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


def check_writable(path: Path) -> None:
    """Say before the work, not after it, that ``path`` cannot be written. Raises LoweringError."""
    if path.is_dir():
        raise LoweringError(f"{path} is a directory: name a file")
    if not path.parent.is_dir():
        raise LoweringError(f"cannot write {path}: {path.parent} is no directory")
    if not os.access(path.parent, os.W_OK):
        raise LoweringError(f"cannot write {path}: no permission to write in {path.parent}")


def write_atomic(files: Mapping[Path, bytes]) -> None:
    """Write ``files``, each whole or not at all: to a temporary name beside its own, renamed once all are
    written. Raises LoweringError, and leaves no temporary file.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in files}
    try:
        for path, data in files.items():
            with open(temporary[path], "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        for path, other in temporary.items():
            os.replace(other, path)
    except OSError as error:
        raise LoweringError(f"cannot write {', '.join(map(str, files))}: {error.strerror or error}") from error
    finally:
        for other in temporary.values():
            with contextlib.suppress(OSError):
                other.unlink()


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
