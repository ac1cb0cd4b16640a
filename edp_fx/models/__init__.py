"""Models by name: timm, torchvision, your own callable, or a saved directory. One file a source."""

from __future__ import annotations

from edp_fx.models.loaded import LoadedModel
from edp_fx.models.loading import load_model

__all__ = ["LoadedModel", "load_model"]
