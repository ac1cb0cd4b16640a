"""What programs are built of; each block reads the feature ``scope.x`` and gives another."""

from tests.fuzz.blocks import attention, control, convolutions, mixing, norms, parameters  # noqa: F401
from tests.fuzz.writer import BLOCKS

__all__ = ["BLOCKS"]
