"""The measures of importance by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edp_fx.compressor.importance import Importance, Norm, Singular, Taylor
from edp_fx.compressor.reconstruction import Reconstruction
from edp_fx.errors import EdpError

MEASURES: Mapping[str, Callable[[], Importance]] = {
    "taylor": Taylor,
    "norm": Norm,
    "singular": Singular,
    "reconstruction": Reconstruction,
}


def make_importance(measure: str | Importance) -> Importance:
    """A measure by name, or the one given.

    Raises:
        EdpError: unknown name.
    """
    if isinstance(measure, Importance):
        return measure
    if measure not in MEASURES:
        raise EdpError(f"importance {measure!r}: unknown; take one of {', '.join(MEASURES)}")
    return MEASURES[measure]()
