"""The parts a network's cost is the sum of, each a function of what is kept: MACs and parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, fx

from edp_fx.channels import ChannelGraph
from edp_fx.channels.counts import AxisCount, Keep
from edp_fx.cost.work import Work
from edp_fx.pairs import Pair


@dataclass(frozen=True, eq=False)
class Term:
    """``overhead`` plus ``constant`` times the living indices along each axis; nothing where a gate is closed.

    Attributes:
        node: the graph node that the cost arises at, or a parameter's name.
        gates: of one index each: whether its layer has the form that costs this.
        positions: numbers that a layer puts out for each index of the last axis; 0 for what is no layer.
        work: what a device counts of the launch that does it.
    """

    node: str
    constant: float
    axes: tuple[AxisCount, ...]
    overhead: float = 0.0
    gates: tuple[AxisCount, ...] = ()
    positions: float = 0.0
    work: Work | None = None

    def cost(self, keep: Keep) -> float:
        """Cost under ``keep``."""
        result = self.constant
        for axis in self.axes:
            result *= axis.alive(keep)
        result += self.overhead
        for gate in self.gates:
            result *= gate.alive(keep)
        return result


@dataclass(frozen=True, eq=False)
class PairTerms:
    """One pair's costs: as two layers, and merged into one."""

    name: str
    basis: Term
    coefficient: Term
    merged: Term

    def as_two(self, keep: Keep) -> float:
        """Cost as two layers."""
        return self.basis.cost(keep) + self.coefficient.cost(keep)

    def best(self, keep: Keep) -> float:
        """Cost in the cheaper form."""
        return min(self.as_two(keep), self.merged.cost(keep))


Terms = tuple[list[Term], list[PairTerms]]


def with_traffic(terms: Terms, number: float) -> Terms:
    """``terms`` with ``number`` added for every number that a layer puts out, a pair's basis included."""

    def more(term: Term) -> Term:
        extra = number * term.positions
        if not extra:
            return term
        if len(term.axes) < 2:
            return replace(term, constant=term.constant + extra)
        # (constant x inputs + extra) x outputs: as if there were more inputs
        first, inner = term.axes[0], math.prod(axis.whole for axis in term.axes[1:-1])
        longer = AxisCount(first.fixed + extra / (term.constant * inner), first.weights)
        return replace(term, axes=(longer, *term.axes[1:]))

    return [more(term) for term in terms[0]], [
        PairTerms(pair.name, more(pair.basis), more(pair.coefficient), more(pair.merged)) for pair in terms[1]
    ]


def with_positions(terms: Terms, each: float) -> Terms:
    """``terms`` with ``each`` added for every position that a layer puts numbers out for, once for a pair; to be given
    terms without kernels, so that what becomes two layers counts once, too."""

    def more(term: Term) -> Term:
        return replace(term, overhead=term.overhead + each * term.positions)

    return [more(term) for term in terms[0]], [
        PairTerms(pair.name, pair.basis, more(pair.coefficient), more(pair.merged)) for pair in terms[1]
    ]


def mac_terms(gm: fx.GraphModule, graph: ChannelGraph) -> Terms:
    """Multiply-accumulates of the example inputs' whole batch: what stands outside pairs, and the pairs.

    A pair that is called several times is there once for each call.
    """
    analysis = graph.analysis
    calls = pair_calls(gm)
    layers = {node.name for node in gm.graph.nodes if node.op == "call_module"}
    plain: list[Term] = []
    inside: dict[str, Term] = {}
    members = {name for call in calls for name in call[1:]}
    for site in analysis.sites:
        positions = 0.0
        if site.node in layers and site.axes[-1].whole:
            positions = float(np.prod(analysis.node_shapes[site.node][0])) / site.axes[-1].whole
        term = Term(site.node, site.constant, site.axes, positions=positions)
        if site.node in members:
            inside[site.node] = term
        else:
            plain.append(term)
    pairs = []
    for home, first, second in calls:
        if first in inside and second in inside:
            basis, coefficient = inside.pop(first), inside.pop(second)
            # (…, c, r) and (…, r, n): merged, the basis' kernel over the coefficient's outputs.
            merged = replace(basis, axes=(*basis.axes[:-1], coefficient.axes[-1]))
            pairs.append(PairTerms(home, basis, coefficient, merged))
    return [*plain, *inside.values()], pairs


def parameter_terms(gm: fx.GraphModule, graph: ChannelGraph) -> Terms:
    """Parameters that are trained, or merged from trained ones; one that several layers share counts once."""
    sizes, axes = graph.analysis.parameter_counts(), graph.analysis.parameter_axes()
    pairs, inside = [], set()
    for home, module in gm.named_modules():
        basis, coefficient = f"{home}.basis.weight", f"{home}.coefficient.weight"
        if isinstance(module, Pair) and basis in axes and coefficient in axes:
            pairs.append(_pair_parameters(home, module, axes[basis], axes[coefficient]))
            inside |= {basis, coefficient}
    plain, scalars = [], 0.0
    for name, parameter in gm.named_parameters():
        if name in inside:
            continue
        constant, counts = sizes.get(name, (float(parameter.numel()), ()))
        if counts:
            plain.append(Term(name, constant, counts))
        else:
            scalars += constant
    return [*plain, *([Term("", scalars, ())] if scalars else [])], pairs


def _pair_parameters(
    home: str, pair: Pair, basis: dict[int, AxisCount], coefficient: dict[int, AxisCount]
) -> PairTerms:
    transposed = pair.geometry.transposed
    b_weight, c_weight = pair.basis.get_parameter("weight"), pair.coefficient.get_parameter("weight")
    rank_axis, in_axis = (1, 0) if transposed else (0, 1)

    def count(known: dict[int, AxisCount], weight: Tensor, axis: int) -> AxisCount:
        return known.get(axis, AxisCount(float(weight.shape[axis]), {}))

    inputs, ranks = count(basis, b_weight, in_axis), count(basis, b_weight, rank_axis)
    kernel = float(np.prod(b_weight.shape[2:]))
    # A transposed layer has all inputs in its weight, and of the outputs those of one group.
    merged = kernel / pair.groups if transposed else kernel
    return PairTerms(
        home,
        Term(home, kernel, (inputs, ranks)),
        Term(home, 1.0, (count(coefficient, c_weight, 1), count(coefficient, c_weight, 0))),
        Term(home, merged, (inputs, count(coefficient, c_weight, 0))),
    )


def pair_calls(gm: fx.GraphModule) -> list[tuple[str, str, str]]:
    """(name of the pair, node of its basis, node of its coefficient) for each call of an explicit pair."""
    found = []
    for node in gm.graph.nodes:
        home, _, leaf = str(node.target).rpartition(".") if node.op == "call_module" else ("", "", "")
        if leaf != "coefficient" or not isinstance(gm.get_submodule(home), Pair):
            continue
        basis = next(iter((*node.args, *node.kwargs.values())), None)
        if isinstance(basis, fx.Node) and basis.op == "call_module" and basis.target == f"{home}.basis":
            found.append((home, basis.name, node.name))
    return found
