"""Measured milliseconds of layers and networks on a runtime, kept on disk."""

from edp_fx.latency.runtimes import RUNTIMES, Runtime, make_runtime
from edp_fx.latency.signature import Signature
from edp_fx.latency.table import LatencyTable

__all__ = ["RUNTIMES", "LatencyTable", "Runtime", "Signature", "make_runtime"]
