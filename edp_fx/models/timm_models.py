"""timm's models by name."""

from __future__ import annotations

import contextlib
from typing import Any

from torch import nn

from edp_fx.errors import ModelError
from edp_fx.extras import need
from edp_fx.models.loaded import CROPPING, LoadedModel, built, fit, images, near


def from_timm(
    name: str, num_classes: int | None, in_chans: int, size: tuple[int, int] | None, pretrained: bool
) -> LoadedModel:
    """A timm model with the preparation of images that its weights were judged with. Raises :class:`ModelError`."""
    need("models", f"the timm model {name}", "timm")
    import timm

    if not timm.is_model(name.split(".")[0]):
        raise ModelError(
            f"no timm model is named {name!r}{near(name, timm.list_models())} "
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

    model = built(name, make)
    config = timm.data.resolve_data_config({}, model=model)
    shape = size or tuple(config["input_size"][1:])
    tag = getattr(model, "pretrained_cfg", {}).get("tag") or "default"
    return LoadedModel(
        model,
        images(in_chans, shape),
        (in_chans, *shape),
        fit(config["mean"], in_chans),
        fit(config["std"], in_chans),
        name,
        weights=f"timm's {tag}" if pretrained else "random",
        normalised=pretrained,
        cropping={key: config[key] for key in CROPPING} if pretrained else {},
    )
