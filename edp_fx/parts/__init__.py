"""Models that cannot be traced as a whole: the parts that can, as one graph, which is compressed inside the model."""

from __future__ import annotations

from edp_fx.parts.parts import Parts, trace_parts

__all__ = ["Parts", "trace_parts"]
