"""A network as a torch.export ``.pt2`` file: written and checked here, never read."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from edp_fx.errors import CheckpointError
from edp_fx.files import write
from edp_fx.inputs import normalize

SUFFIX = ".pt2"


def save_program(gm: fx.GraphModule, path: Path, example_inputs: Any) -> Path:
    """Write ``gm`` in eval mode on the CPU to ``path``, its batch size free, once what was written computes the same.

    Raises:
        CheckpointError: no example inputs, another result at another batch size, or a file that cannot be written.
        LoweringError: torch.export refuses the network, or it fixes its batch size.
    """
    from edp_fx.lowering.precision import plain_copy
    from edp_fx.lowering.profile import Profile, Range
    from edp_fx.lowering.program import export_program, quiet

    if example_inputs is None:
        raise CheckpointError(f"{path}: a {SUFFIX} file is exported on example inputs: give them to save")
    inputs = tuple(tensor.detach().cpu() for tensor in normalize(example_inputs))
    network = plain_copy(gm)
    profile = Profile(Range(1, 2, 2**31 - 1))
    program = export_program(network, inputs, profile)
    # example inputs are kept as a pickle in the file, and nobody needs them
    program.exported._example_inputs = None
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(program.exported, buffer)
        content = buffer.getvalue()
        back = torch.export.load(io.BytesIO(content)).module()  # our own bytes, not a file
        for batch in (1, 3):
            _check_equal(path, network, back, profile.sample(inputs, batch, None, seed=batch))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}") from error
    write({path: content}, CheckpointError)
    return path


@torch.no_grad()
def _check_equal(path: Path, network: Any, back: Any, inputs: tuple[Tensor, ...]) -> None:
    wanted, found = tree_leaves(network(*inputs)), tree_leaves(back(*inputs))
    for a, b in zip(wanted, found, strict=True):
        if isinstance(a, Tensor):
            if a.shape == b.shape and torch.equal(a, b):
                continue
            least = torch.finfo(a.dtype).eps * 100 if a.is_floating_point() else 0.0
            off = float((a - b).abs().max()) / (float(a.abs().max()) or 1.0) if a.shape == b.shape else float("inf")
            if not off <= least:
                raise CheckpointError(
                    f"{path} was not written: at batch {inputs[0].shape[0]} the exported network gives another result "
                    f"(off by {off:.1e}, relative)"
                )
