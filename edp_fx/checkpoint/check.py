"""Does what a file holds compute what the network computes?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn

from edp_fx.errors import CheckpointError, typed_line
from edp_fx.inputs import device_of, eval_mode, normalize
from edp_fx.leaves import leaves


def check_same(gm: fx.GraphModule, back: fx.GraphModule, example_inputs: Any) -> None:
    """Run ``gm``, and ``back`` as it was read from a file, in eval mode on the example inputs.

    Outputs may differ by what the order of additions makes: the root of the type's precision, of the greatest value.
    Nothing is run without example inputs, or where a network is on the meta device. ``gm`` stays as it is.

    Raises:
        CheckpointError: ``gm`` does not run on the inputs, ``back`` does not, or their results differ.
    """
    if example_inputs is None or any(one.is_meta for one in chain(gm.parameters(), gm.buffers())):
        return
    inputs = normalize(example_inputs, gm)
    if any(one.is_meta for one in inputs):
        return
    with _unchanged(gm), torch.no_grad():
        try:
            wanted = _run(gm, inputs)
        except Exception as error:
            raise CheckpointError(f"the network does not run on the example inputs: {typed_line(error)}") from error
    home = device_of(gm)
    try:
        with torch.no_grad():
            found = _run(back.to(home) if home is not None else back, inputs)
    except Exception as error:
        raise CheckpointError(
            f"nothing was written: what would be loaded does not run ({typed_line(error)}); a layer depends on what is "
            "no plain attribute of it"
        ) from error
    if len(wanted) != len(found):
        raise CheckpointError(
            f"nothing was written: {len(found)} of {len(wanted)} outputs would be there after loading"
        )
    for index, (one, other) in enumerate(zip(wanted, found)):
        off = _difference(one, other)
        if off is not None:
            raise CheckpointError(
                f"nothing was written: output {index} would be another after loading ({off}); a layer depends on what "
                "is no plain attribute of it"
            )


def _run(network: nn.Module, inputs: tuple[Tensor, ...]) -> list[Any]:
    devices = sorted({one.device.index or 0 for one in inputs if one.is_cuda})
    with eval_mode(network), torch.random.fork_rng(devices):
        torch.manual_seed(0)
        return [one for one in leaves(network(*(one.clone() for one in inputs))) if one is not None]


def _difference(one: Any, other: Any) -> str | None:
    """In words, None where there is none to speak of."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return None if type(one) is type(other) and one == other else f"{one!r} and {other!r}"
    if one.shape != other.shape or one.dtype != other.dtype:
        return f"{tuple(one.shape)} {one.dtype} and {tuple(other.shape)} {other.dtype}"
    if torch.equal(one, other) or not one.numel():
        return None
    exact = not (one.dtype.is_floating_point or one.dtype.is_complex)
    least = 0.0 if exact else torch.finfo(one.dtype).eps ** 0.5
    kind = torch.complex128 if one.is_complex() else torch.float64
    a, b = one.to(kind), other.to(kind)
    finite = a.isfinite()
    if not torch.equal(torch.where(finite, 0, a).nan_to_num(), torch.where(b.isfinite(), 0, b).nan_to_num()):
        return "other infinities"
    if not torch.equal(a.isnan(), b.isnan()):
        return "other values that are no numbers"
    a, b = a[finite], b[finite]
    off = float((a - b).abs().max()) / max(float(a.abs().max()), 1e-300) if a.numel() else 0.0
    return None if off <= least else f"off by {off:.1e}, relative"


@contextmanager
def _unchanged(network: nn.Module) -> Iterator[None]:
    """Gives buffers back the values they had: some networks write to them as they run."""
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)
