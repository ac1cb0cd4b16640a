"""Example inputs in a recipe: shapes and types, and for integers what values they may have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from edp_fx.errors import CheckpointError
from edp_fx.inputs import normalize


def describe_inputs(inputs: Any) -> list[list[Any]]:
    """Shape and type of each input, for integers also the least and the greatest value; [] for None."""
    if inputs is None:
        return []
    return [_described(one) for one in normalize(inputs)]


def _described(tensor: Tensor) -> list[Any]:
    facts: list[Any] = [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
    if _is_integer(tensor.dtype) and tensor.numel() and not tensor.is_meta:
        wide = tensor.long()  # an index into a table must stay one
        facts += [int(wide.min()), int(wide.max())]
    return facts


def example_inputs(recipe: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Random inputs of the shapes and types a recipe was saved with, integers in the range of the examples.

    Raises CheckpointError where the recipe has none.
    """
    if not recipe.get("inputs"):
        raise CheckpointError("the saved model does not say its input shapes: save it with example_inputs")
    generator = torch.Generator().manual_seed(0)
    try:
        return tuple(_made(generator, *facts) for facts in recipe["inputs"])
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"the saved model's example inputs cannot be read ({error}): it is damaged") from error


def _made(generator: torch.Generator, shape: list[int], dtype: str, low: int = 0, high: int = 1) -> Tensor:
    kind = getattr(torch, dtype)
    if _is_integer(kind):
        return torch.randint(low, high + 1, shape, generator=generator).to(kind)
    return torch.randn(shape, generator=generator).to(kind)


def _is_integer(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex)
