"""Kernels: a convolution that keeps one kernel per input channel becomes a depthwise and a pointwise one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, cast

import numpy as np
from torch import fx

from edp_fx.channels import ChannelGraph
from edp_fx.channels.counts import AxisCount
from edp_fx.channels.kernels import Kernels, beyond_one_kernel, find_kernels
from edp_fx.compressor.kinds.base import Applied, Flags, Part, Place, Removable, Whole
from edp_fx.cost.terms import PairTerms, Term, Terms
from edp_fx.passes.insert import InsertPairs


class Kernel(Whole):
    """What a convolution has beyond one kernel per input channel."""

    name = "kernel"
    metrics = ("macs", "latency")
    forms: ClassVar[Mapping[str, str]] = {"separate": "pointwise"}

    def find(self, gm: fx.GraphModule, graph: ChannelGraph, first_id: int) -> Sequence[Removable]:
        """Plain layers and pairs of more than one tap and input channel, not grouped."""
        return find_kernels(gm, first_id)

    def weighed_by(self, group: Removable) -> Collection[str]:
        """The layer's weight."""
        return [cast(Kernels, group).parameter]

    def parts(self, group: Removable, parameters: Collection[str]) -> Iterable[Part]:
        """Of the weight, what it has beyond one kernel per input channel."""
        parameter = cast(Kernels, group).parameter
        if parameter in parameters:
            yield Part(parameter, None, np.zeros(1, dtype=np.int64), self.name, selection=beyond_one_kernel)

    def cost(self, terms: Terms, groups: Sequence[Removable], metric: str) -> Terms:
        """Two layers where the kernels go, one where they stay."""
        return with_kernels(terms, cast(Sequence[Kernels], groups))

    @staticmethod
    def rewrite(gm: fx.GraphModule, graph: ChannelGraph, removed: Mapping[Removable, Flags]) -> Applied:
        """Make of each the pair of one kernel per input channel."""
        layers = cast(Sequence[Kernels], list(removed))
        applied = Applied(
            moved=dict(pair for one in layers for pair in _moved(one)),
            undecayed={f"{one.name}.depthwise.weight" for one in layers},
        )
        applied.reports.append(InsertPairs(form="kernels", rank=1, layers=tuple(one.name for one in layers))(gm).report)
        return applied


def _moved(one: Kernels) -> Iterable[tuple[Place, Place]]:
    """Where the indices of the two layers were in the one, or the pair."""
    second = one.parameter.removesuffix(".weight")
    if second != one.name:
        second = f"{one.name}.coefficient"
    depthwise, pointwise = f"{one.name}.depthwise", f"{one.name}.pointwise"
    yield (f"{depthwise}.weight", 0), (one.parameter, 1)
    yield (f"{pointwise}.weight", 1), (one.parameter, 1)
    yield (f"{pointwise}.weight", 0), (f"{second}.weight", 0)
    yield (f"{pointwise}.bias", 0), (f"{second}.bias", 0)


def with_kernels(terms: Terms, kernels: Sequence[Kernels]) -> Terms:
    """``terms`` where each layer whose kernels are left out costs what a depthwise and a pointwise layer cost."""
    of_node = {node: one for one in kernels for node in one.nodes}
    kept = {one: (AxisCount(0.0, {one.id: np.ones(1)}),) for one in kernels}
    plain, pairs = [], []

    def add_separate(term: Term, one: Kernels) -> None:
        gone = (AxisCount(1.0, {one.id: -np.ones(1)}),)
        inputs, outputs = term.axes[0], term.axes[-1]
        first, second = None, None
        if term.work is not None:
            first, second = term.work.separated(inputs, outputs, term.positions)
        # what a layer costs once, its positions, stays with the second
        plain.append(replace(term, axes=(inputs,), overhead=0.0, gates=gone, work=first))
        constant = term.constant / one.taps
        plain.append(replace(term, constant=constant, axes=(inputs, outputs), gates=gone, work=second))

    for term in terms[0]:
        one = of_node.get(term.node)
        if one is not None:
            add_separate(term, one)
            term = replace(term, gates=kept[one])
        plain.append(term)
    for pair in terms[1]:
        one = of_node.get(pair.basis.node)
        if one is not None:
            add_separate(pair.merged, one)
            parts = (replace(term, gates=kept[one]) for term in (pair.basis, pair.coefficient, pair.merged))
            pair = PairTerms(pair.name, *parts)
        pairs.append(pair)
    return plain, pairs
