"""A model of the catalogue made ready for the stages: built at the smallest size it takes, nothing left constant."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from edp_fx.coverage import zoos
from edp_fx.coverage.catalog import Entry
from edp_fx.errors import ModelError
from edp_fx.frontend.shapes import ShapeMode, shapes_only
from edp_fx.inputs import eval_mode, randomize_
from edp_fx.models import load_model

_SIZES = (96, 128, 160, 192, 224, 256, 288, 320, 384, 448, 512)
# Regularisation on, so that train mode is not eval mode by another name; what a constructor does not know is dropped.
_OPTIONS = {
    "img_size": _SIZES[0],
    "drop_rate": 0.1,
    "drop_path_rate": 0.1,
    "attn_drop_rate": 0.1,
    "proj_drop_rate": 0.1,
}


@dataclass
class Subject:
    """A model on its way through the stages.

    Attributes:
        entry: what it is.
        model: the network, random in everything an initialisation leaves constant.
        inputs: a batch of two, to trace with.
        other: a batch of three, to compare on.
        graph: the traced graph, once there is one; ``inserted`` the same with pairs.
        shared: whatever a stage leaves for later ones.
    """

    entry: Entry
    model: nn.Module
    inputs: tuple[Tensor, ...]
    other: tuple[Tensor, ...]
    graph: fx.GraphModule | None = None
    inserted: fx.GraphModule | None = None
    shared: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Height of the images in pixels."""
        return int(self.inputs[0].shape[-2])


def prepare(entry: Entry) -> Subject:
    """Build a model at the smallest image size it takes and randomise it.

    Raises:
        ModelError: it cannot be built, or runs at no size tried.
    """
    if entry.zoo is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, inputs = zoos.build(entry.name)
    elif entry.name.startswith("torchvision:") or "/" in entry.name or ":" in entry.name:
        loaded = load_model(entry.name)
        model, inputs = loaded.model, loaded.example_inputs
        if len(inputs) == 1 and inputs[0].ndim == 4:
            size = next(s for s in (*_SIZES, inputs[0].shape[-1]) if _runs(model, s) or s == inputs[0].shape[-1])
            inputs = (torch.randn(2, inputs[0].shape[1], size, size),)
    else:
        model, size = _timm(entry.name)
        inputs = (torch.randn(2, 3, size, size),)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.inplace = False  # in place, some models cannot train once dropout is on
    randomize_(model)
    generator = torch.Generator().manual_seed(1)
    other = tuple(torch.randn(3, *x.shape[1:], generator=generator) for x in inputs)
    return Subject(entry, model, inputs, other)


def _timm(name: str) -> tuple[nn.Module, int]:
    import timm

    if not timm.is_model(name):
        load_model(name)  # raises with the nearest names

    options: dict[str, Any] = dict(_OPTIONS)
    for size in (*_SIZES, _own_size(name)):
        if "img_size" in options:
            options["img_size"] = size
        probe = _probe(name, options)
        if probe is not None and _runs(probe, size):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return timm.create_model(name, **options), size
    raise ModelError(f"{name} runs at none of the image sizes {_SIZES}")


def _own_size(name: str) -> int:
    import timm

    config = timm.get_pretrained_cfg(name)
    return int(config.input_size[-1]) if config is not None else 224


def _probe(name: str, options: dict[str, Any]) -> nn.Module | None:
    """The model without memory for its weights, where it can be made so; drops options it does not know."""
    import timm

    for device in ("meta", "cpu"):
        for _ in range(len(options) + 1):
            try:
                with torch.device(device):
                    return timm.create_model(name, **options)
            except TypeError as error:
                unknown = [key for key in options if f"'{key}'" in str(error)]
                if not unknown:
                    break
                del options[unknown[0]]
            except Exception:
                break  # a size it cannot be built for, or an initialisation that reads values
    return None


def _runs(model: nn.Module, size: int) -> bool:
    """Whether images of a size pass through; without arithmetic where that can be had."""
    images = torch.empty(2, 3, size, size)
    try:
        with eval_mode(model), shapes_only(ShapeMode(torch.device("cpu"))):
            model(images)
        return True
    except Exception:
        if any(p.is_meta for p in model.parameters()):
            return False
    try:
        with eval_mode(model), torch.no_grad():
            model(torch.randn(2, 3, size, size))
        return True
    except Exception:
        return False
