"""torchvision's models by name; of a detection model its backbone."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from edp_fx.errors import ModelError
from edp_fx.extras import need
from edp_fx.models.loaded import MEAN, STD, LoadedModel, built, fit, images, near
from edp_fx.models.weights import load_state


def from_torchvision(
    name: str, num_classes: int | None, in_chans: int, size: tuple[int, int] | None, pretrained: bool
) -> LoadedModel:
    """A torchvision model; published weights keep all but the classifier where the classes are others.

    Raises:
        ModelError: unknown name, or it cannot be built.
    """
    need("models", f"torchvision:{name}", "torchvision")
    import torchvision

    names = torchvision.models.list_models()
    if name not in names:
        raise ModelError(f"no torchvision model is named {name!r}{near(name, names)}")
    builder = torchvision.models.get_model_builder(name)
    detection = builder.__module__.startswith("torchvision.models.detection")
    takes = inspect.signature(builder).parameters
    options: dict[str, Any] = {"weights": None}
    if "weights_backbone" in takes:
        options["weights_backbone"] = None
    if num_classes is not None:
        options["num_classes"] = num_classes
    made = str(builder.__annotations__.get("return"))
    if "Inception" in made or "GoogLeNet" in made:
        options["init_weights"] = not pretrained
        # auxiliary classifiers make forward return something else in train mode
        options["aux_logits"] = False
    if pretrained and made.endswith("Inception3"):
        options["transform_input"] = True
    model = built(name, lambda: builder(**options))
    source = "random"
    if pretrained:
        source = built(name, lambda: _published(model, builder, num_classes))
    if detection:
        model = model.backbone
    preset = None if detection else _preset(builder)
    side = int(preset.crop_size[0]) if preset is not None else 224
    shape = size or ((320, 320) if detection else (side, side))
    if in_chans != 3:
        _other_channels(model, in_chans)
    return LoadedModel(
        model,
        images(in_chans, shape),
        (in_chans, *shape),
        fit(preset.mean if preset is not None else MEAN, in_chans),
        fit(preset.std if preset is not None else STD, in_chans),
        f"torchvision:{name}",
        weights=source,
        normalised=pretrained,
        cropping=_cropping(preset) if pretrained and preset is not None else {},
    )


def _published(model: nn.Module, builder: Any, num_classes: int | None) -> str:
    """Load torchvision's default weights; says which, and what stays random."""
    import torchvision

    chosen = torchvision.models.get_model_weights(builder).DEFAULT
    state = chosen.get_state_dict(progress=False, check_hash=True)
    known = model.state_dict()
    # the auxiliary heads of Inception and GoogLeNet, which are for training from scratch only
    state = {key: value for key, value in state.items() if key in known or not key.lower().startswith("aux")}
    left = load_state(model, state, f"torchvision's {chosen.name}", num_classes)
    return f"torchvision's {chosen.name}" + (f"; {', '.join(left)} random" if left else "")


def _preset(builder: Any) -> Any:
    """How images are made ready for torchvision's trained weights of a classifier; None for others. None is loaded."""
    import torchvision

    try:
        found = torchvision.models.get_model_weights(builder).DEFAULT.transforms()
    except (AttributeError, ValueError):
        return None
    return found if hasattr(found, "crop_size") and hasattr(found, "resize_size") else None


def _cropping(preset: Any) -> dict[str, Any]:
    share = preset.crop_size[0] / preset.resize_size[0]
    return {"interpolation": preset.interpolation.value, "crop_pct": share, "crop_mode": "center"}


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
