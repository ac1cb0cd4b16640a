"""The groups of an analysis proved on the network itself: pruned at random, it must compute what it does masked."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from edp_fx.channels import ChannelGraph
from edp_fx.channels.analysis import Analysis
from edp_fx.errors import PassError, typed_line
from edp_fx.inputs import device_of, random_values, randomize_
from edp_fx.passes.prune import prune
from edp_fx.validation.compare import last_bit
from edp_fx.validation.masking import difference, masked_run, plain_run, random_keep
from edp_fx.validation.precision import computes_in_single, in_double, in_single
from edp_fx.validation.samples import calibrating_outputs, other_batches, smaller_inputs, tell
from edp_fx.validation.search import to_blame
from edp_fx.validation.undo import Undo

SHARES = (0.8, 0.5)  # kept at random in the two rounds
SINGLE = 1e-4  # of the output's standard deviation, in float32
DOUBLE = 1e-8
NOISE = 10.0  # times what the last bit of the inputs does
CHEAP = (1e9, 5e6)  # multiply-accumulates of a run, and parameters, up to which float64 costs little
SMALL = 150_000_000  # parameters of a network of which a copy in float64 is made
Keep = dict[int, np.ndarray]


def prove(graph: ChannelGraph) -> ChannelGraph:
    """``graph`` with those groups frozen whose removal is not what masking says, and ``unproved`` where that cannot be
    told. Its network stays as it is."""
    if not graph.prunable:
        return graph
    home = device_of(graph.gm)
    if home is None or home.type == "meta":
        return replace(graph, unproved="the network has no data")
    try:
        sample = _Sample(graph, double=None)
    except _Unproved as reason:
        return replace(graph, unproved=str(reason))
    frozen: dict[int, str] = {}
    try:
        for seed, share in enumerate(SHARES):
            keep = {number: kept for number, kept in random_keep(graph, seed, share).items() if number not in frozen}
            if sample.difference(keep) <= sample.least:
                continue
            if not sample.double and sample.parameters <= SMALL:
                sample = _Sample(graph, double=True)
            frozen.update(sample.to_blame(keep))
    except _Unproved as reason:
        return replace(graph, unproved=str(reason))
    if not frozen:
        return graph
    groups = [replace(one, frozen=frozen[one.id]) if one.id in frozen else one for one in graph.groups]
    return replace(graph, analysis=Analysis(graph.analysis.views, groups))


class _Unproved(Exception):
    """The proof cannot be made; says why."""


class _Sample:
    """A copy of the network with nothing left at its initial constant, and what it is run on.

    Args:
        graph: the analysis.
        double: in float64, or not; where that is cheap if None.

    Raises:
        _Unproved: the network does not run on random inputs.
    """

    def __init__(self, graph: ChannelGraph, double: bool | None) -> None:
        self.graph = graph
        self.parameters = sum(one.numel() for one in graph.gm.parameters())
        like = graph.example_inputs
        macs = sum(site.macs({}) for site in graph.analysis.sites) / max(one.numel() for one in like)
        copies: dict[bool, fx.GraphModule] = {}
        runs: tuple[bool, tuple[Tensor, ...]] | None = None
        failed = ""
        for inputs in smaller_inputs(like, device_of(graph.gm) or torch.device("cpu"), other_batches(like)):
            cheap = macs * max(one.numel() for one in inputs) <= CHEAP[0] and self.parameters <= CHEAP[1]
            chosen = cheap if double is None else double
            if chosen not in copies:
                copies[chosen] = _random_copy(graph.gm, torch.float64 if chosen else torch.float32)
            inputs = in_double(inputs) if chosen else in_single(inputs)
            try:
                runs = chosen, inputs
                if tell(calibrating_outputs(copies[chosen], inputs)):
                    break
            except Exception as error:
                failed = f" of shape {_shapes(inputs)}: {typed_line(error)}"
                runs = None
        if runs is None:
            raise _Unproved(f"the network does not run on random inputs{failed}")
        self.double, self.inputs = runs
        self.network = copies[self.double]
        self.network.eval()
        self.least = DOUBLE if self.double else SINGLE
        self.undo = Undo(self.network)
        self._why: dict[int, str] = {}

    def masked(self, keep: Keep, seed: int = 0, inputs: tuple[Tensor, ...] | None = None) -> list[Tensor]:
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return masked_run(self.network, self.graph, keep, inputs or self.inputs)
        except Exception as error:
            raise _Unproved(f"the network does not run masked: {typed_line(error)}") from error

    def difference(self, keep: Keep) -> float:
        """Of the pruned network from the masked one, in standard deviations of the output."""
        if not keep:
            return 0.0
        masked = self.masked(keep)
        try:
            prune(self.network, self.graph, keep)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                pruned = plain_run(self.network, self.inputs)
        except Exception as error:
            if len(keep) == 1:
                self._why[next(iter(keep))] = str(error) if isinstance(error, PassError) else typed_line(error)
            return float("inf")
        finally:
            self.undo.restore()
        return difference(masked, pruned)

    def to_blame(self, keep: Keep) -> dict[int, str]:
        """Group -> why it must stay, for those that differ beyond rounding."""
        masked = self.masked(keep)
        if difference(masked, self.masked(keep, seed=1)) > 0:
            raise _Unproved("the network draws random numbers in evaluation mode")
        noise = difference(masked, self.masked(keep, inputs=last_bit(self.inputs)))
        single = self.double and computes_in_single(self.network, self.inputs)
        tolerance = max(SINGLE if single else self.least, NOISE * noise)

        def off(numbers: Sequence[int]) -> float:
            return self.difference({number: keep[number] for number in numbers})

        return {number: self._reason(number, by) for number, by in to_blame(list(keep), off, tolerance).items()}

    def _reason(self, number: int, by: float) -> str:
        if number in self._why:
            return f"it cannot be removed: {self._why[number]}"
        return f"pruned, the network differs from itself masked by {by:.1e} standard deviations"


def _random_copy(gm: fx.GraphModule, dtype: torch.dtype) -> fx.GraphModule:
    """A copy with nothing left at its initial constant; it shares the weights that stay: nothing writes to them."""
    tensors = [*gm.parameters(), *gm.buffers()]
    if any(one.is_floating_point() and one.dtype != dtype for one in tensors):
        network: fx.GraphModule = copy.deepcopy(gm).to(dtype)
        randomize_(network)
        return network
    memo: dict[int, Any] = {id(one): one for one in gm.parameters()}
    for tensor, value in random_values(gm):
        memo[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
    return copy.deepcopy(gm, memo)


def _shapes(inputs: Sequence[Tensor]) -> str:
    return ", ".join(str(tuple(one.shape)) for one in inputs)
