"""A directory that :func:`edp_fx.save` or ``edp-fx compress`` wrote."""

from __future__ import annotations

import torch

from edp_fx.errors import ModelError
from edp_fx.models.loaded import MEAN, STD, LoadedModel, cropping_of, fit, images


def from_saved(spec: str, num_classes: int | None, in_chans: int, size: tuple[int, int] | None) -> LoadedModel:
    """The model of a saved directory, with what is kept beside it of the preparation of images and the class names.

    Raises:
        CheckpointError: the directory is damaged.
        ModelError: it was asked for another number of classes.
    """
    from edp_fx.checkpoint import example_inputs, load

    model = load(spec)
    recipe = model.meta["edp_fx.recipe"]
    extra = recipe.get("extra", {})
    inputs = example_inputs(recipe) if recipe.get("inputs") else images(in_chans, size or (224, 224))
    if size is not None and inputs[0].ndim == 4:
        inputs = (torch.randn(*inputs[0].shape[:2], *size), *inputs[1:])
    shape = tuple(inputs[0].shape[1:])
    channels = shape[0] if len(shape) == 3 else 0
    loaded = LoadedModel(
        model,
        inputs,
        shape,
        tuple(extra.get("mean") or fit(MEAN, channels)),
        tuple(extra.get("std") or fit(STD, channels)),
        extra.get("model") or spec,
        weights=f"those saved in {spec}",
        normalised=bool(extra.get("mean")),
        classes=tuple(extra.get("class_names") or ()),
        cropping=cropping_of(spec, extra),
    )
    if num_classes is not None and loaded.outputs not in (None, num_classes):
        raise ModelError(
            f"{spec} has {loaded.outputs} outputs, not {num_classes}: take data of {loaded.outputs} classes, or start "
            "from the model it was made of"
        )
    return loaded
