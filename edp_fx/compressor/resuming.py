"""Saving a run and taking it up again, with checks that say in one line what does not fit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from edp_fx.compressor.fading import Fading
from edp_fx.errors import CheckpointError

if TYPE_CHECKING:
    from edp_fx.compressor.compressor import Compressor


def state_of(compressor: Compressor) -> dict[str, Any]:
    """All that is needed to resume, as tensors, numbers and strings."""
    return {
        "asked": _asked(compressor),
        "count": compressor.count,
        "removals": compressor.removals,
        "since": torch.from_numpy(compressor.progress.fading.since.copy()),
        "floors": torch.from_numpy(compressor.progress.floors.copy()),
        "importance": compressor.importance.total,
        "events": json.dumps(compressor.events),
        "max_rel_diff": compressor.max_rel_diff,
        "dense": compressor.dense,
        "target": compressor.target,
    }


def take_up(compressor: Compressor, state: Mapping[str, Any]) -> None:
    """Bring a fresh compressor on the same network to the saved shape.

    Raises:
        CheckpointError: the state belongs to another network, budget or schedule.
    """
    asked = _asked(compressor)
    if compressor.count and not compressor.done:
        raise CheckpointError("load the compressor's state into a fresh Compressor, before its first step")
    if state.get("asked") != asked:
        raise CheckpointError(
            f"the compressor's state was made for {state.get('asked')}, not for {asked}; go on with the options of "
            "the first run"
        )
    if compressor.done:
        if not _same(compressor.removals, state["removals"]):
            raise CheckpointError(
                "what goes was chosen otherwise than in the run that is taken up: it must see the same images first"
            )
        compressor.count = int(state["count"])
        return
    with _belongs_to_the_network():
        for entry in state["removals"]:
            keep = {int(key): mask.numpy() for key, mask in entry["keep"].items()}
            compressor.reduce(keep, merged=bool(entry["merged"]), as_two=entry["as_two"])
    progress = compressor.progress
    if len(state["since"]) != progress.elements.n:
        raise CheckpointError(
            f"the compressor's state has {len(state['since'])} elements, this network {progress.elements.n}: it "
            "belongs to another network"
        )
    compressor.count = int(state["count"])
    progress.fading = Fading(progress.elements, compressor.schedule, state["since"].numpy())
    progress.floors = state["floors"].numpy().copy()
    total = state["importance"]
    compressor.importance.total = None if total is None else total.clone()  # accumulated into in place
    compressor.events = json.loads(state["events"])
    compressor.max_rel_diff = float(state["max_rel_diff"])
    # a latency is not measured alike twice
    compressor.dense, compressor.target = float(state["dense"]), float(state["target"])


def _same(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the same was removed."""
    return len(ours) == len(theirs) and all(
        one["keep"].keys() == other["keep"].keys()
        and all(torch.equal(mask, other["keep"][key]) for key, mask in one["keep"].items())
        and one["as_two"] == other["as_two"]
        for one, other in zip(ours, theirs)
    )


@contextmanager
def _belongs_to_the_network() -> Iterator[None]:
    """Say of errors inside that the state is of another network."""
    try:
        yield
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the compressor's state belongs to another network: {error}") from error


def _asked(compressor: Compressor) -> str:
    """What a state must have been made for to be loaded here."""
    return f"{compressor.method}, {compressor.schedule}"
