"""A network without its weights: meta tensors in their places, so that it runs for shapes alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from edp_fx.frontend.shortcuts import META
from edp_fx.leaves import map_tensors


def without_data(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same on the meta device."""
    return tuple(map_tensors(lambda x: torch.empty_like(x, device=META), inputs))


@dataclass
class Weights:
    """Weights that were taken away.

    Attributes:
        named: the meta tensors in their places by state name, and how many of their axes can be channels: all but the
            kernel positions of convolutions. A tensor under several names has the first.
        real: the tensors by the ids of those in their places.
    """

    named: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    real: dict[int, Tensor] = field(default_factory=dict)

    @contextmanager
    def back_in(self, module: nn.Module | None) -> Iterator[torch.device]:
        """Within it a module has its own weights; gives the device they are on."""

        def real(one: Tensor) -> Tensor:
            return self.real.get(id(one), one)

        places: list[tuple[Any, str, Any]] = [
            (table, key, value)
            for one in (module.modules() if module is not None else ())
            for table in (one._parameters, one._buffers, vars(one))
            for key, value in table.items()
            if not key.startswith("_") and isinstance(value, (Tensor, list, tuple, dict)) and not _plain(value)
        ]
        try:
            for table, key, value in places:
                table[key] = map_tensors(real, value)
            yield next((one.device for one in self.real.values()), torch.device("cpu"))
        finally:
            for table, key, value in places:
                table[key] = value


def take_weights_away(model: nn.Module) -> Weights:
    """Put meta tensors in the places of every parameter, buffer and plain tensor attribute of ``model``.

    Inside :func:`edp_fx.inputs.eval_mode`, which gives everything back: a copy would take longer than the run.
    """
    metas: dict[int, Tensor] = {}
    weights = Weights()

    def meta(real: Tensor) -> Tensor:
        if id(real) not in metas:
            empty = torch.empty_like(real, device=META)
            metas[id(real)] = nn.Parameter(empty, requires_grad=False) if isinstance(real, nn.Parameter) else empty
            weights.real[id(metas[id(real)])] = real
        return metas[id(real)]

    modules = list(model.named_modules())
    for table in ("_parameters", "_buffers"):
        for path, module in modules:
            for leaf, value in getattr(module, table).items():
                if value is not None:
                    if id(value) not in metas:
                        axes = 2 if isinstance(module, _ConvNd) else value.ndim
                        weights.named[f"{path}.{leaf}" if path else leaf] = meta(value), axes
                    getattr(module, table)[leaf] = meta(value)
    for _, module in modules:
        for key, value in vars(module).items():  # also inside lists and dicts
            if key[:1] != "_" and isinstance(value, (Tensor, list, tuple, dict)) and not _plain(value):
                module.__dict__[key] = map_tensors(meta, value)
    return weights


def _plain(value: Any) -> bool:
    """A short cut for what most attributes are: a few numbers."""
    return isinstance(value, (list, tuple)) and all(type(one) in (int, float, str, bool) for one in value)
