"""A model of the catalogue made ready for the stages: built at the smallest size it takes, nothing left constant."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from edp_fx.coverage.catalog import Entry
from edp_fx.errors import ModelError
from edp_fx.frontend.shapes import ShapeMode, shapes_only
from edp_fx.inputs import eval_mode, randomize_
from edp_fx.models import load_model

_SIZES = (96, 128, 160, 192, 224, 256, 288, 320, 384, 448, 512)
# Regularisation on, so that train mode is not eval mode by another name; tried from the fullest on.
_REGULAR: tuple[dict[str, float], ...] = (
    {"drop_rate": 0.1, "drop_path_rate": 0.1, "attn_drop_rate": 0.1, "proj_drop_rate": 0.1},
    {"drop_rate": 0.1, "drop_path_rate": 0.1, "attn_drop_rate": 0.1},
    {"drop_rate": 0.1, "drop_path_rate": 0.1},
    {"drop_rate": 0.1},
    {},
)


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
    if entry.name.startswith("torchvision:") or "/" in entry.name or ":" in entry.name:
        loaded = load_model(entry.name)
        model, inputs = loaded.model, loaded.example_inputs
        if len(inputs) == 1 and inputs[0].ndim == 4:
            size = next(s for s in (*_SIZES, inputs[0].shape[-1]) if _runs(model, s) or s == inputs[0].shape[-1])
            inputs = (torch.randn(2, inputs[0].shape[1], size, size),)
    else:
        model, size = _timm(entry.name)
        inputs = (torch.randn(2, 3, size, size),)
    randomize_(model)
    generator = torch.Generator().manual_seed(1)
    other = tuple(torch.randn(3, *x.shape[1:], generator=generator) for x in inputs)
    return Subject(entry, model, inputs, other)


def _timm(name: str) -> tuple[nn.Module, int]:
    import timm

    if not timm.is_model(name):
        load_model(name)  # raises with the nearest names

    def create(options: dict[str, Any], meta: bool) -> nn.Module:
        with torch.device("meta") if meta else contextlib.nullcontext():
            return timm.create_model(name, **options)

    sized = _accepts(create, {"img_size": _SIZES[0]}, otherwise=(ValueError, AssertionError, RuntimeError))
    options = next(o for o in _REGULAR if not o or _accepts(create, o))
    trial = None if sized else _trial(create, {})
    for size in (*_SIZES, _own_size(name)):
        extra = {"img_size": size} if sized else {}
        try:
            probe = _trial(create, extra) if trial is None else trial
        except Exception:
            continue
        if _runs(probe, size):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = create({**options, **extra}, False)
            return model, size
    raise ModelError(f"{name} runs at none of the image sizes {_SIZES}")


def _own_size(name: str) -> int:
    import timm

    config = timm.get_pretrained_cfg(name)
    return int(config.input_size[-1]) if config is not None else 224


def _accepts(create: Any, options: dict[str, Any], otherwise: tuple[type[Exception], ...] = ()) -> bool:
    """Whether a constructor takes keyword arguments; ``otherwise`` are errors that mean yes."""
    for meta in (True, False):
        try:
            create(options, meta)
            return True
        except TypeError as error:
            if "argument" in str(error):
                return False
        except otherwise:
            return True
        except Exception:
            continue
    return False


def _trial(create: Any, options: dict[str, Any]) -> nn.Module:
    try:
        return create(options, True)
    except Exception:
        return create(options, False)


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
