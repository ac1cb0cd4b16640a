"""An engine as a module that takes batches of any size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edp_fx.leaves import map_tensors, tensors_of
from edp_fx.lowering.targets import Engine


class WholeBatches(nn.Module):
    """Runs an engine on pieces of a batch that it takes, and joins what it gives, on the CPU.

    Args:
        engine: see :func:`~edp_fx.lowering.engine.load_engine`.
        like: outputs of the model it was made of, whose containers its outputs are put into; a file knows tensors only.
    """

    def __init__(self, engine: Engine, like: Any = None) -> None:
        super().__init__()
        self.engine, self.like = (engine,), (like,)

    def forward(self, *inputs: Tensor) -> Any:
        """The outputs of all rows: as those of the model, else a tensor or a tuple of them."""
        outputs = self._outputs(*inputs)
        if self.like[0] is None:
            return outputs
        found = iter(tensors_of(outputs))
        return map_tensors(lambda _: next(found), self.like[0])

    def _outputs(self, *inputs: Tensor) -> Any:
        (engine,) = self.engine
        if engine.batch is None:
            return map_tensors(Tensor.cpu, engine(*inputs))
        pieces: list[Any] = []
        for rows in zip(*(one.split(engine.batch.max) for one in inputs)):
            count = len(rows[0])
            missing = max(0, engine.batch.min - count)
            padded = [torch.cat([one, one[-1:].expand(missing, *one.shape[1:])]) for one in rows]
            given = engine(*padded)
            pieces.append(given[:count].cpu() if isinstance(given, Tensor) else [one[:count].cpu() for one in given])
        if isinstance(pieces[0], Tensor):
            return torch.cat(pieces)
        return tuple(torch.cat(parts) for parts in zip(*pieces))
