"""Compressed models on disk: weights as safetensors, everything else as JSON; no pickle, nothing executed."""

from edp_fx.checkpoint.examples import example_inputs
from edp_fx.checkpoint.files import RECIPE, WEIGHTS, check_saveable, load, read_recipe, save

__all__ = ["RECIPE", "WEIGHTS", "check_saveable", "example_inputs", "load", "read_recipe", "save"]
