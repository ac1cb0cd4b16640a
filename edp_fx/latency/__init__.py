"""Measured milliseconds of networks on a runtime."""

from edp_fx.latency.meter import Meter, Reading
from edp_fx.latency.runtimes import RUNTIMES, Runtime, make_runtime

__all__ = ["RUNTIMES", "Meter", "Reading", "Runtime", "make_runtime"]
