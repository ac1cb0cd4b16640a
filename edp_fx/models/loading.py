"""``load_model``: which source a specification names."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from edp_fx.errors import ModelError
from edp_fx.models.callables import from_callable
from edp_fx.models.loaded import LoadedModel
from edp_fx.models.saved import from_saved
from edp_fx.models.timm_models import from_timm
from edp_fx.models.torchvision_models import from_torchvision
from edp_fx.models.weights import load_weights


def load_model(
    spec: str,
    *,
    num_classes: int | None = None,
    in_chans: int = 3,
    img_size: int | tuple[int, int] | None = None,
    pretrained: bool = False,
    weights: str | Path | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    seed: int = 0,
) -> LoadedModel:
    """Make or load a model.

    Args:
        spec: a timm name, ``torchvision:NAME`` (of a detection model: its backbone), ``module.path:callable`` (see
            :func:`edp_fx.models.callables.from_callable`), or a saved directory.
        num_classes: outputs of the classifier; None is the model's own number.
        in_chans: channels of the images.
        img_size: height and width of the images in pixels; None is the model's own.
        pretrained: load the trained weights the source offers.
        weights: a file of weights of this model, safetensors or a PyTorch file that holds nothing else.
        mean: of the normalisation, one number or one a channel; None is the model's own.
        std: likewise.
        seed: of the initialisation.

    Raises:
        ModelError: unknown name, the model cannot be built, weights do not fit, or an option means nothing for this
            source; names that are near are offered.
    """
    size = (img_size, img_size) if isinstance(img_size, int) else img_size
    if pretrained and weights is not None:
        raise ModelError("--pretrained and --weights: give one of the two")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loaded = _from_source(spec, num_classes, in_chans, size, pretrained)
    if weights is not None:
        left = load_weights(loaded.model, Path(weights), num_classes)
        loaded.weights = f"{weights}" + (f"; {', '.join(left)} random: the file is for other classes" if left else "")
    loaded.normalise_by(mean, std)
    return loaded


def _from_source(
    spec: str, num_classes: int | None, in_chans: int, size: tuple[int, int] | None, pretrained: bool
) -> LoadedModel:
    if Path(spec).is_dir():
        if pretrained:
            raise ModelError(f"{spec}: a saved directory has its own weights; leave --pretrained out")
        return from_saved(spec, num_classes, in_chans, size)
    if spec.startswith("torchvision:"):
        return from_torchvision(spec.removeprefix("torchvision:"), num_classes, in_chans, size, pretrained)
    if ":" in spec:
        return from_callable(spec, num_classes, in_chans, size, pretrained)
    if os.sep in spec or spec.startswith("."):
        raise ModelError(f"no saved model at {spec!r}: the directory does not exist")
    return from_timm(spec, num_classes, in_chans, size, pretrained)
