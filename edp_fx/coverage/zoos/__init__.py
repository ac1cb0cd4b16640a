"""Models of other libraries for the coverage sweep, one file a library, installed by the extra ``zoos``.

A zoo has ``names()``, what it is swept over, and ``build(name)``, a network and its example inputs.
"""

from __future__ import annotations

import contextlib
import importlib
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from edp_fx.errors import ModelError

ZOOS = {  # the module whose import is what building a model waits for
    "pytorchcv": "pytorchcv.model_provider",
    "smp": "segmentation_models_pytorch",
    "ultralytics": "ultralytics.nn.tasks",
    "transformers": "transformers",
    "torchvision": "torchvision",
}


def zoo(name: str) -> ModuleType:
    """The module of a zoo.

    Raises:
        ModelError: there is no such zoo.
    """
    if name not in ZOOS:
        raise ModelError(f"zoo {name!r} is not known; choose from {', '.join(ZOOS)}")
    return importlib.import_module(f"edp_fx.coverage.zoos.{name}_zoo")


def warm_up(name: str) -> None:
    """Import a zoo's library, so that processes forked later have it; where it is not installed, they will say so."""
    zoo(name)
    with contextlib.suppress(ImportError):
        importlib.import_module(ZOOS[name])


def names(name: str) -> list[str]:
    """The models of a zoo, as ``ZOO:MODEL``."""
    return [f"{name}:{model}" for model in zoo(name).names()]


def build(spec: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network ``ZOO:MODEL`` and a batch of two for it.

    Raises:
        ModelError: the library is not installed, or the model cannot be built.
    """
    name, _, model = spec.partition(":")
    try:
        made: Any = zoo(name).build(model)
    except ImportError as error:
        raise ModelError(f"{spec}: {error}; install the extra: pip install 'edp_fx[zoos]'") from error
    return made
