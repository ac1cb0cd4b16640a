"""What every engine does with its inputs and outputs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from edp_fx.errors import LoweringError


def check_count(given: int, wanted: int) -> None:
    """Raises LoweringError where an engine is not called with as many inputs as it takes."""
    if given != wanted:
        raise LoweringError(f"the engine takes {wanted} inputs, {given} given")


def unwrapped(outputs: list[Tensor]) -> Any:
    """One output alone, several as a tuple."""
    return outputs[0] if len(outputs) == 1 else tuple(outputs)
