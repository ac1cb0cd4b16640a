"""Compressed models on disk: weights as safetensors, everything else as JSON; no pickle, nothing executed."""

from edp_fx.checkpoint.files import RECIPE, WEIGHTS, load, read_recipe, save

__all__ = ["RECIPE", "WEIGHTS", "load", "read_recipe", "save"]
