"""What a network is trained for: how a batch is read, what is minimised, what is judged. Classifying is the default."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edp_fx.errors import EdpError, TrainingError, typed_line
from edp_fx.leaves import map_tensors, sole, tensors_of

WAY = "give loss=, a function of (outputs, targets), and metric=; with the command --task"


@dataclass(frozen=True)
class Task:
    """What a network is trained for.

    Args:
        loss: (outputs, targets) -> scalar, the smaller the better; outputs are what the model gives, in float32, and
            targets what is left of a batch without its inputs, both on the device of the model. Cross entropy of
            outputs [N, classes], or the one tensor in them, and targets [N] where None.
        metric: (outputs, targets) -> number, averaged over images; or an object with ``update(outputs, targets)``,
            ``compute()`` and ``reset()``, as those of torchmetrics, for what is no average. The larger the better.
            Accuracy where None and the outputs are [N, classes], the targets [N].
    """

    loss: Callable[[Any, Any], Any] | None = None
    metric: Any = None

    def __post_init__(self) -> None:
        """Raise :class:`TrainingError` for what cannot be called."""
        for name, value in (("loss", self.loss), ("metric", self.metric)):
            if value is not None and not callable(value) and not _collects(value):
                raise TrainingError(f"{name}: a {type(value).__name__} is no function of (outputs, targets)")

    @property
    def classifies(self) -> bool:
        """Whether outputs are logits [N, classes] and targets labels [N], by the default loss."""
        return self.loss is None

    def minimised(self, outputs: Any, targets: Any, smoothing: float = 0.0) -> Tensor:
        """The loss, a scalar.

        Args:
            outputs: of the model.
            targets: of the batch.
            smoothing: of the labels, for the default loss.

        Raises:
            TrainingError: the loss fails, or is no scalar of a differentiable type.
        """
        if self.loss is None:
            return F.cross_entropy(sole(outputs), targets, label_smoothing=smoothing)
        try:
            value = self.loss(outputs, targets)
        except EdpError:
            raise
        except Exception as error:
            raise TrainingError(
                f"the loss {named(self.loss)} fails on {described(outputs)} and {described(targets)}: "
                f"{typed_line(error)}"
            ) from error
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            raise TrainingError(f"the loss {named(self.loss)} gives {described(value)}: give one number, as a tensor")
        return value.reshape(())

    def check_outputs(self, outputs: Any) -> None:
        """Raise :class:`TrainingError` where the default loss does not apply to these."""
        outputs = sole(outputs)
        if self.loss is None and not (isinstance(outputs, Tensor) and outputs.dim() == 2):
            raise TrainingError(f"the model gives {described(outputs)}, not [images, classes]: {WAY}")

    def check(self, outputs: Any, targets: Any) -> None:
        """Raise :class:`TrainingError` where the default loss does not apply to these."""
        self.check_outputs(outputs)
        if self.loss is not None:
            return
        outputs = sole(outputs)
        if not isinstance(targets, Tensor) or targets.dim() != 1 or targets.is_floating_point():
            raise TrainingError(f"targets are {described(targets)}: give the class of each image [N], or {WAY}")
        most = int(targets.max())
        if most >= outputs.shape[1]:
            count = outputs.shape[1]
            raise TrainingError(f"label {most} in the data, but the network gives {count} classes, from 0 on")


@dataclass(frozen=True)
class Score:
    """What a network is worth on some images.

    Attributes:
        metric: the larger the better; of a classifier its top-1 accuracy in [0, 1]. None where the task has none.
        loss: mean.
        images: over how many.
        name: of the metric.
        top5: of a classifier, the share of images whose label is among the five largest outputs.
    """

    metric: float | None
    loss: float
    images: int
    name: str = "accuracy"
    top5: float | None = None

    @property
    def accuracy(self) -> float:
        """The metric of a classifier."""
        if self.metric is None or self.name != "accuracy":
            raise AttributeError(f"the metric is {self.name}, not accuracy: see .metric")
        return self.metric


class Judge:
    """Gathers metric and loss over batches.

    Args:
        task: whose metric.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.name = "accuracy" if task.metric is None else named(task.metric)
        self._sums: Tensor | None = None  # of metric, loss, images and labels among the first five
        self._judged = task.metric is not None
        if _collects(task.metric):
            task.metric.reset()

    def add(self, outputs: Any, targets: Any, images: int) -> None:
        """Judge a batch. Raises :class:`TrainingError` where the loss or the metric fails on it."""
        loss = self.task.minimised(outputs, targets)
        if self.task.classifies:
            outputs = sole(outputs)
        among = _among_five(outputs, targets) if self._classifies(outputs, targets) else 0
        parts = (self._sum(outputs, targets, images), images * loss.double(), images, among)
        here = torch.stack([torch.as_tensor(one, device=loss.device, dtype=torch.float64) for one in parts])
        self._sums = here if self._sums is None else self._sums + here

    def _sum(self, outputs: Any, targets: Any, images: int) -> Any:
        """The metric of a batch, added up over its images."""
        metric = self.task.metric
        if metric is None:
            if self._classifies(outputs, targets):
                self._judged = True
                return (outputs.argmax(1) == targets).sum()
            return 0.0
        try:
            if not _collects(metric):
                return images * torch.as_tensor(metric(outputs, targets)).double().reshape(())
            metric.update(outputs, targets)
        except Exception as error:
            raise TrainingError(
                f"the metric {self.name} fails on {described(outputs)} and {described(targets)}: {typed_line(error)}"
            ) from error
        return 0.0

    def _classifies(self, outputs: Any, targets: Any) -> bool:
        return self.task.metric is None and _classes_of(outputs, targets)

    def score(self) -> Score:
        """The metric and the mean loss of all batches."""
        value, loss, images, among = self._sums.tolist() if self._sums is not None else (0.0, 0.0, 0.0, 0.0)
        count = max(images, 1)
        metric = float(self.task.metric.compute()) if _collects(self.task.metric) else value / count
        five = among / count if self.name == "accuracy" and self._judged else None
        return Score(metric if self._judged else None, loss / count, int(images), self.name, five)


def split(batch: Any, names: Sequence[str]) -> tuple[tuple[Tensor, ...], Any]:
    """A batch as the model's inputs and what is left of it, the targets.

    Args:
        batch: a tuple or list that begins with the inputs, one a tensor or all in a tuple of their own; or a
            dictionary that has them by name.
        names: of the model's inputs, see :func:`input_names`.

    Returns:
        (inputs, targets). One target alone is no tuple; of a dictionary targets are a dictionary.

    Raises:
        TrainingError: it has not as many inputs, or nothing else.
    """
    count = len(names)
    if isinstance(batch, Mapping):
        lacking = [name for name in names if not isinstance(batch.get(name), Tensor)]
        if lacking:
            raise TrainingError(
                f"the loader gives a dictionary of {', '.join(map(str, batch))}, and the model's input is called "
                f"{lacking[0]!r}: name the tensor so, or give (inputs, targets)"
            )
        targets = {key: one for key, one in batch.items() if key not in names}
        if not targets:
            raise TrainingError(f"the loader gives a dictionary of {', '.join(names)} alone, and no targets")
        return tuple(batch[name] for name in names), targets
    wanted = "batches must be (inputs [N, …], targets)"
    if count > 1:
        wanted = f"the model takes {count} inputs, so batches must be ({', '.join(names)}, targets)"
    if not isinstance(batch, tuple | list):
        what = "nothing" if batch is None else f"a {type(batch).__name__}"
        raise TrainingError(f"the loader gives {what}: {wanted}")
    inputs, rest = batch[:count], batch[count:]
    if len(batch) == 2 and count > 1 and isinstance(batch[0], tuple | list):
        inputs, rest = batch[0], batch[1:]
    if len(inputs) != count or not rest or not all(isinstance(one, Tensor) for one in inputs):
        raise TrainingError(f"the loader gives {described(batch)}: {wanted}")
    return tuple(inputs), rest[0] if len(rest) == 1 else tuple(rest)


def input_names(model: nn.Module, count: int | None = None) -> tuple[str, ...]:
    """The names of a model's inputs: the first ``count`` arguments of ``forward``, or those without a default."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = [one for one in inspect.signature(model.forward).parameters.values() if one.kind in positional]
    if count is None:
        count = max(1, sum(one.default is inspect.Parameter.empty for one in found))
    names = [one.name for one in found[:count]]
    return (*names, *(f"input_{index}" for index in range(len(names), count)))


def floats(outputs: Any) -> Any:
    """Outputs in float32, in their own containers."""
    return map_tensors(lambda one: one.float() if one.is_floating_point() else one, outputs)


def placed(value: Any, device: torch.device) -> Any:
    """Tensors of a batch on a device, in their own containers."""
    return map_tensors(lambda one: one.to(device, non_blocking=True), value)


def described(value: Any) -> str:
    """What a value is, in words: the shape of a tensor, what is in a container."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} of {', '.join(map(str, value))}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def named(function: Any) -> str:
    """What a function or object calls itself."""
    name = getattr(function, "name", None) or getattr(function, "__name__", None)
    return name if isinstance(name, str) else type(function).__name__


def _collects(metric: Any) -> bool:
    return all(callable(getattr(metric, name, None)) for name in ("update", "compute", "reset"))


def _classes_of(outputs: Any, targets: Any) -> bool:
    return (
        isinstance(outputs, Tensor)
        and isinstance(targets, Tensor)
        and outputs.dim() == 2
        and targets.dim() == 1
        and not targets.is_floating_point()
        and len(outputs) == len(targets)
    )


def _among_five(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.topk(min(5, outputs.shape[1]), dim=1).indices == targets[:, None]).sum()


def distance(outputs: Any, others: Any) -> Tensor:
    """How far outputs are from those of another network: mean squared differences, each tensor's by the variance of
    the other's, averaged over tensors."""
    pairs = zip(tensors_of(outputs), tensors_of(others), strict=True)
    parts = [F.mse_loss(one, other) / other.var().clamp_min(1e-12) for one, other in pairs if one.is_floating_point()]
    return torch.stack(parts).mean()
