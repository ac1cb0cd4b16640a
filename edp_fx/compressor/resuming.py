"""Checks of a saved Compressor state, each with one line that says what does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from edp_fx.errors import CheckpointError


def check_state(state: Mapping[str, Any], asked: str, count: int) -> None:
    """Raise :class:`CheckpointError` unless ``state`` was made for ``asked`` and no step was done yet."""
    if count:
        raise CheckpointError("load the compressor's state into a fresh Compressor, before its first step")
    if state.get("asked") != asked:
        raise CheckpointError(
            f"the compressor's state was made for {state.get('asked')}, not for {asked}; go on with the options of "
            "the first run"
        )


@contextmanager
def belongs_to_the_network() -> Iterator[None]:
    """Say of errors inside that the state is of another network."""
    try:
        yield
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the compressor's state belongs to another network: {error}") from error


def check_elements(state: Mapping[str, Any], count: int) -> None:
    """Raise :class:`CheckpointError` where the state has another number of elements than the network."""
    if len(state["born"]) != count:
        raise CheckpointError(
            f"the compressor's state has {len(state['born'])} elements, this network {count}: it belongs to another "
            "network"
        )
