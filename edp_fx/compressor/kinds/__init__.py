"""What may go: a room for each kind of removal, and the list of all."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from edp_fx.compressor.kinds.base import Kind
from edp_fx.compressor.kinds.branch import Branch
from edp_fx.compressor.kinds.channel import Channel
from edp_fx.compressor.kinds.head import Head
from edp_fx.compressor.kinds.kernel import Kernel
from edp_fx.compressor.kinds.rank import Rank
from edp_fx.errors import BudgetError
from edp_fx.registration import Registration

_kinds: dict[str, Kind] = {kind.name: kind for kind in (Rank(), Channel(), Head(), Kernel(), Branch())}
KINDS: Mapping[str, Kind] = MappingProxyType(_kinds)
"""All kinds by name, those of :func:`register_kind` last."""


def register_kind(kind: Kind) -> Registration:
    """Let a kind of removal of one's own take part: named by methods, or wherever it is offered.

    Returns:
        A handle: ``remove()`` takes the kind back, as the end of ``with register_kind(...):`` does.

    Raises:
        BudgetError: another kind has its name.
    """
    if kind.name in _kinds:
        raise BudgetError(f"kind {kind.name!r} is there already: give yours another name")
    _kinds[kind.name] = kind
    return Registration(lambda: _kinds.pop(kind.name, None))
