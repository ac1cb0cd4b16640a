"""The front end: from any vision model to a trainable graph of its own modules."""

from __future__ import annotations

from edp_fx.frontend.guards import Guard
from edp_fx.frontend.propagate import propagate
from edp_fx.frontend.trace import TraceReport, trace

__all__ = ["Guard", "TraceReport", "propagate", "trace"]
