"""Models by name: timm, torchvision, any callable, or a saved directory."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edp_fx.errors import EdpError, ModelError
from edp_fx.inputs import normalize

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as timm and torchvision use them
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
    """

    model: nn.Module
    example_inputs: tuple[Tensor, ...]
    input_size: tuple[int, ...]
    mean: tuple[float, ...] = _MEAN
    std: tuple[float, ...] = _STD
    name: str = ""


def load_model(
    spec: str,
    *,
    num_classes: int | None = None,
    in_chans: int = 3,
    img_size: int | tuple[int, int] | None = None,
    pretrained: bool = False,
    seed: int = 0,
) -> LoadedModel:
    """Make or load a model.

    Args:
        spec: a timm name, ``torchvision:NAME`` (of a detection model: its backbone), ``module.path:callable``
            (called with nothing; gives a model, or the model and its example inputs), or a saved directory.
        num_classes: outputs of the classifier; None is the model's own number.
        in_chans: channels of the images.
        img_size: height and width of the images in pixels; None is the model's own.
        pretrained: load the trained weights the source offers.
        seed: of the initialisation.

    Raises:
        ModelError: unknown name, or the model cannot be built; names that are near are offered.
    """
    size = (img_size, img_size) if isinstance(img_size, int) else img_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if Path(spec).is_dir():
            return _saved(spec, in_chans, size)
        if spec.startswith("torchvision:"):
            return _torchvision(spec.removeprefix("torchvision:"), num_classes, in_chans, size, pretrained)
        if ":" in spec:
            return _callable(spec, num_classes, in_chans, size, pretrained)
        if os.sep in spec or spec.startswith("."):
            raise ModelError(f"no saved model at {spec!r}: the directory does not exist")
        return _timm(spec, num_classes, in_chans, size, pretrained)


def _images(channels: int, size: tuple[int, int]) -> tuple[Tensor, ...]:
    return (torch.randn(_BATCH, channels, *size),)


def _fit(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Statistics of RGB for another number of channels: their average."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def _near(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(near)}?" if near else ""


def _built(name: str, make: Any) -> Any:
    try:
        return make()
    except EdpError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ModelError(f"model {name!r} cannot be built: {type(error).__name__}: {reason}") from error


def _timm(
    name: str, num_classes: int | None, in_chans: int, size: tuple[int, int] | None, pretrained: bool
) -> LoadedModel:
    import timm

    if not timm.is_model(name.split(".")[0]):
        raise ModelError(
            f"no timm model is named {name!r}{_near(name, timm.list_models())} "
            "(other sources: torchvision:NAME, module.path:callable, a saved directory)"
        )
    options: dict[str, Any] = {"pretrained": pretrained, "in_chans": in_chans}
    if num_classes is not None:
        options["num_classes"] = num_classes

    def make() -> nn.Module:
        if size is not None:
            with contextlib.suppress(TypeError):  # models that work at any size take no img_size
                return timm.create_model(name, img_size=size, **options)
        return timm.create_model(name, **options)

    model = _built(name, make)
    config = timm.data.resolve_data_config({}, model=model)
    shape = size or tuple(config["input_size"][1:])
    return LoadedModel(
        model,
        _images(in_chans, shape),
        (in_chans, *shape),
        _fit(config["mean"], in_chans),
        _fit(config["std"], in_chans),
        name,
    )


def _torchvision(
    name: str, num_classes: int | None, in_chans: int, size: tuple[int, int] | None, pretrained: bool
) -> LoadedModel:
    import torchvision

    names = torchvision.models.list_models()
    if name not in names:
        raise ModelError(f"no torchvision model is named {name!r}{_near(name, names)}")
    builder = torchvision.models.get_model_builder(name)
    detection = builder.__module__.startswith("torchvision.models.detection")
    options: dict[str, Any] = {"weights": "DEFAULT" if pretrained else None}
    if "weights_backbone" in inspect.signature(builder).parameters:
        options["weights_backbone"] = None
    if num_classes is not None and not pretrained:
        options["num_classes"] = num_classes

    made = str(builder.__annotations__.get("return"))
    if "Inception" in made or "GoogLeNet" in made:
        options["init_weights"] = True
        if not pretrained:  # auxiliary classifiers make forward return something else in train mode
            options["aux_logits"] = False
    model = _built(name, lambda: builder(**options))
    if detection:
        model = model.backbone
    shape = size or (320, 320) if detection else size or _crop_size(builder)
    if in_chans != 3:
        _other_channels(model, in_chans)
    return LoadedModel(
        model, _images(in_chans, shape), (in_chans, *shape), _fit(_MEAN, in_chans), _fit(_STD, in_chans),
        f"torchvision:{name}",
    )  # fmt: skip


def _crop_size(builder: Any) -> tuple[int, int]:
    """The image size torchvision's trained weights of a model were made for; no weights are loaded."""
    import torchvision

    try:
        transforms = torchvision.models.get_model_weights(builder).DEFAULT.transforms()
    except (AttributeError, ValueError):
        return (224, 224)
    side = getattr(transforms, "crop_size", [224])[0]
    return (side, side)


@torch.no_grad()
def _other_channels(model: nn.Module, channels: int) -> None:
    """Give the first convolution another number of input channels: its weights averaged over the old ones."""
    for parent in model.modules():
        for child in parent.children():
            if isinstance(child, nn.Conv2d) and child.in_channels == 3 and child.groups == 1:
                weight = child.weight.mean(1, keepdim=True) * (3 / channels)
                child.in_channels = channels
                child.weight = nn.Parameter(weight.repeat(1, channels, 1, 1))
                return
    raise ModelError(f"the model has no first convolution to adapt to {channels} channels")


def _callable(
    spec: str, num_classes: int | None, in_chans: int, size: tuple[int, int] | None, pretrained: bool
) -> LoadedModel:
    path, _, name = spec.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a user's own file beside him
    try:
        function: Any = importlib.import_module(path)
        for atom in name.split("."):
            function = getattr(function, atom)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"cannot import {spec!r}: {error}") from error
    offered = {"num_classes": num_classes, "in_chans": in_chans, "img_size": size, "pretrained": pretrained}
    takes = inspect.signature(function).parameters
    made = _built(spec, lambda: function(**{k: v for k, v in offered.items() if k in takes and v is not None}))
    model, inputs = made if isinstance(made, tuple) else (made, _images(in_chans, size or (224, 224)))
    if not isinstance(model, nn.Module):
        raise ModelError(f"{spec!r} returned {type(model).__name__}, not a model or (model, example_inputs)")
    inputs = normalize(inputs)
    shape = tuple(inputs[0].shape[1:])
    channels = shape[0] if shape else 0
    return LoadedModel(model, inputs, shape, _fit(_MEAN, channels), _fit(_STD, channels), spec)


def _saved(spec: str, in_chans: int, size: tuple[int, int] | None) -> LoadedModel:
    from edp_fx.checkpoint import example_inputs, load

    model = load(spec)
    recipe = model.meta["edp_fx.recipe"]
    extra = recipe.get("extra", {})
    inputs = example_inputs(recipe) if recipe.get("inputs") else _images(in_chans, size or (224, 224))
    if size is not None and inputs[0].ndim == 4:
        inputs = (torch.randn(*inputs[0].shape[:2], *size), *inputs[1:])
    shape = tuple(inputs[0].shape[1:])
    channels = shape[0] if shape else 0
    return LoadedModel(
        model,
        inputs,
        shape,
        tuple(extra.get("mean") or _fit(_MEAN, channels)),
        tuple(extra.get("std") or _fit(_STD, channels)),
        extra.get("model") or spec,
    )
