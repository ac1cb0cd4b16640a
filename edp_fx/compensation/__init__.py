"""What a network lost is made up for by what it kept, in closed form and without training."""

from __future__ import annotations

from edp_fx.compensation.refit import Refit

__all__ = ["Refit"]
