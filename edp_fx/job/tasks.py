"""What a user's network is for, by ``module.path:object``: its loss, its metric, its data."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edp_fx.data.base import SPLITS, Data
from edp_fx.errors import DataError, EdpError, ModelError, typed_line
from edp_fx.models.callables import imported
from edp_fx.models.loaded import near
from edp_fx.train.task import Task

HELD = ("loss", "metric", "data", "num_classes")
OFFERED = ("batch_size", "img_size", "seed", "workers")


@dataclass(frozen=True)
class Brought:
    """A task as its object says.

    Attributes:
        spec: how it was named.
        loss: see :class:`~edp_fx.train.Task`; None where the object has none.
        metric: likewise.
        data: loaders by split (train, and any of val and test), or a function that gives them and takes any of
            ``batch_size``, ``img_size``, ``seed`` and ``workers``; None where the object has none.
        num_classes: outputs that the model is asked for; None for its own.
    """

    spec: str
    loss: Any = None
    metric: Any = None
    data: Any = None
    num_classes: int | None = None

    def with_model(self, loss: Any, metric: Any) -> Task:
        """The task, with what a model brings of its own for what is not said here."""
        return Task(self.loss if self.loss is not None else loss, self.metric if self.metric is not None else metric)

    def load_data(self, img_size: int, **options: Any) -> Data:
        """Its loaders.

        Args:
            img_size: side of the images in pixels.
            options: ``batch_size``, ``seed`` and ``workers``.

        Raises:
            DataError: there are none, the function fails, or what it gives is something else.
        """
        name = f"--task {self.spec}"
        loaders = self.data
        if loaders is None:
            raise DataError(f"{name} has no data: give it data, loaders by split, or give --data")
        if callable(loaders):
            offered = {"img_size": img_size, **options}
            takes = inspect.signature(loaders).parameters
            try:
                loaders = loaders(**{key: one for key, one in offered.items() if key in takes})
            except EdpError:
                raise
            except Exception as error:
                raise DataError(f"{name}: its data cannot be read: {typed_line(error)}") from error
        if not isinstance(loaders, Mapping) or "train" not in loaders or set(loaders) - set(SPLITS):
            raise DataError(f"{name}: data is {_what(loaders)}: give loaders by split: train, and any of val and test")
        counts = " / ".join(f"{len(one)} {key}" for key, one in loaders.items() if hasattr(one, "__len__"))
        return Data(
            name.removeprefix("--"),
            dict(loaders),
            num_classes=self.num_classes,
            in_chans=3,
            img_size=img_size,
            splits=f"{counts} batches, as the task says",
            mean=(),
            std=(),
            lacking="the task gives none",
        )


def load_task(spec: str | None) -> Brought:
    """The task ``module.path:object``; classes where None.

    The object is a dictionary, a module's own class or object, or a function without arguments that returns one. It has
    any of :data:`HELD`.

    Raises:
        ModelError: it cannot be imported, or holds something else.
    """
    if spec is None:
        return Brought("")
    found = imported(spec)
    if inspect.isfunction(found):
        try:
            found = found()
        except Exception as error:
            raise ModelError(f"--task {spec} fails: {typed_line(error)}") from error
    if isinstance(found, Mapping):
        unknown = [str(key) for key in found if key not in HELD]
        if unknown:
            raise ModelError(
                f"--task {spec} holds {unknown[0]!r}, not one of {', '.join(HELD)}{near(unknown[0], HELD)}"
            )
        facts = dict(found)
    else:
        facts = {key: getattr(found, key) for key in HELD if hasattr(found, key)}
    if not {"loss", "metric", "data"} & facts.keys():
        raise ModelError(f"--task {spec} is {_what(found)}: give an object with loss, metric or data")
    return Brought(spec, **facts)


def _what(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a dictionary of {', '.join(map(str, value)) or 'nothing'}"
    return f"a {type(value).__name__}"
