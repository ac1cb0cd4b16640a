"""A model with what is needed to run it, and helpers that every source of models uses."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from edp_fx.errors import EdpError, ModelError, typed_line
from edp_fx.inputs import eval_mode
from edp_fx.leaves import sole

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as timm and torchvision use them
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
CROP_MODES = ("center", "squash", "border")
CROPPING = ("interpolation", "crop_pct", "crop_mode")
_BATCH = 2


@dataclass
class LoadedModel:
    """A model with what is needed to run it.

    Attributes:
        model: the module, in train mode, on the CPU.
        example_inputs: a batch of two.
        input_size: (channels, height, width) of the first input.
        mean: per channel, of the normalisation its images want.
        std: the same.
        name: for reports.
        weights: where its weights come from, in words.
        normalised: whether ``mean`` and ``std`` are the model's own; else they are ImageNet's, for want of better, and
            a data set's own come first.
        classes: names of the classes, in the order of the outputs; empty where nobody said.
        loss: (outputs, targets) -> scalar, where the model brings its own.
        metric: (outputs, targets) -> number, likewise.
        cropping: how image files become its input, in the words of timm's data configuration: ``interpolation``,
            ``crop_pct`` (side of the input over that of the image it is cut from), ``crop_mode``; only what is its own.
    """

    model: nn.Module
    example_inputs: tuple[Tensor, ...]
    input_size: tuple[int, ...]
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    name: str = ""
    weights: str = "random"
    normalised: bool = False
    classes: tuple[str, ...] = ()
    loss: Callable[..., Any] | None = None
    metric: Callable[..., Any] | None = None
    cropping: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def given(self) -> Any:
        """What it gives for the example inputs in eval mode; None where it fails, which is told where it is used."""
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        try:
            with eval_mode(self.model), torch.no_grad():
                return self.model(*(one.to(device) for one in self.example_inputs))
        except Exception:
            return None

    @property
    def outputs(self) -> int | None:
        """How many classes it tells apart: C where it gives one tensor [N, C] alone, else None."""
        found = sole(self.given)
        return int(found.shape[1]) if isinstance(found, Tensor) and found.dim() == 2 else None

    @property
    def preparation(self) -> dict[str, Any]:
        """How images are made ready for it, as options of :func:`edp_fx.data.load_data`; only what is its own."""
        return {**({"mean": self.mean, "std": self.std} if self.normalised else {}), **self.cropping}

    @property
    def facts(self) -> dict[str, Any]:
        """Preparation and class names, where they are known, as plain values to keep beside files made of it."""
        known = {name: list(one) if isinstance(one, tuple) else one for name, one in self.preparation.items()}
        return known | ({"class_names": list(self.classes)} if self.classes else {})

    def describe(self) -> str:
        """Model, weights and outputs in a line."""
        return f"model: {self.name}; weights: {self.weights}" + (f"; {self.outputs} outputs" if self.outputs else "")

    def check_classes(self, count: int, names: Iterable[str] = ()) -> None:
        """Raise :class:`ModelError` where the model tells apart another number of classes than the data, or others."""
        if self.outputs is not None and self.outputs != count:
            raise ModelError(
                f"{self.name} has {self.outputs} outputs and the data {count} classes: give a model of {count} classes"
            )
        theirs = tuple(names)
        if self.classes and theirs and self.classes != theirs:
            odd = next((mine, other) for mine, other in zip(self.classes, theirs) if mine != other)
            raise ModelError(
                f"{self.name} was made for the class {odd[0]!r} where the data have {odd[1]!r}: take data with the "
                "same classes in the same order"
            )

    def normalise_by(self, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> None:
        """Take another mean and standard deviation, of one number for all channels or of one each.

        Raises:
            ModelError: another count than the channels, or a deviation that is not above 0.
        """
        channels = self.input_size[0] if self.input_size else 0
        for name, values in (("mean", mean), ("std", std)):
            if values is None:
                continue
            if len(values) not in (1, channels):
                raise ModelError(f"--{name}: {len(values)} numbers for {channels} channels; give one, or one a channel")
            if name == "std" and min(values) <= 0:
                raise ModelError(f"--std {min(values):g}: give numbers above 0")
            setattr(self, name, values * channels if len(values) == 1 else values)
            self.normalised = True


def cropping_of(name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What ``facts`` say of :data:`CROPPING`. Raises :class:`ModelError` for a value that is none of its kind."""
    found = {key: facts[key] for key in CROPPING if facts.get(key) is not None}
    for key, known in (("interpolation", INTERPOLATIONS), ("crop_mode", CROP_MODES)):
        if found.get(key, known[0]) not in known:
            raise ModelError(f"{name}: {key}={found[key]!r}: give one of {', '.join(known)}")
    share = found.get("crop_pct", 1)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise ModelError(f"{name}: crop_pct={share!r}: give a share in (0, 1]")
    return found


def images(channels: int, size: tuple[int, int]) -> tuple[Tensor, ...]:
    """Two random images, as example inputs."""
    return (torch.randn(_BATCH, channels, *size),)


def fit(values: Iterable[float], channels: int) -> tuple[float, ...]:
    """Statistics of RGB for another number of channels: their average."""
    given = tuple(values)
    return given if len(given) == channels else (sum(given) / len(given),) * channels


def near(name: str, names: Iterable[str]) -> str:
    """Names like ``name``, as the end of a message."""
    found = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f"; did you mean {', '.join(found)}?" if found else ""


def built(name: str, make: Callable[[], Any]) -> Any:
    """What ``make`` gives. Raises :class:`ModelError` in one line where it fails."""
    try:
        return make()
    except EdpError:
        raise
    except Exception as error:
        raise ModelError(f"model {name!r} cannot be built: {typed_line(error)}") from error
