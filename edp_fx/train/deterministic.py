"""The same bits from the same seed, on a GPU too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic() -> Iterator[None]:
    """Within it torch takes the algorithms that give the same bits every time, where it has them; it warns of an
    operation that has none. What was set before is put back. Without a GPU nothing changes: a processor's are such.

    Source: torch's notes on reproducibility (``torch.use_deterministic_algorithms``).
    """
    if not torch.cuda.is_available():
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it; read at its first call
    enabled = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=warns or not enabled)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warns)
