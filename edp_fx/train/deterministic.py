"""The same bits from the same seed, on a GPU too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# cuBLAS reads it at the process' first matrix product on a GPU: later is too late
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def deterministic() -> Iterator[None]:
    """Within it torch takes the algorithms that give the same bits every time, where it has them; it warns of an
    operation that has none. What was set before is put back. Without a GPU nothing changes: a processor's are such.

    Source: torch's notes on reproducibility (``torch.use_deterministic_algorithms``, ``cudnn.benchmark``).
    """
    if not torch.cuda.is_available():
        yield
        return
    enabled, tries = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=warns or not enabled)
    torch.backends.cudnn.benchmark = False  # which algorithm is fastest may change from run to run
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warns)
        torch.backends.cudnn.benchmark = tries
