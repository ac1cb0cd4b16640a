"""Latency as a sum of terms: every layer an affine function of its multiply-accumulates, fitted to measurements."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
from torch import fx, nn

from edp_fx.channels import ChannelGraph
from edp_fx.cost.terms import PairTerms, Term, Terms, mac_terms
from edp_fx.geometry import PLAIN_TYPES
from edp_fx.latency import LatencyTable, Signature
from edp_fx.pairs import Pair
from edp_fx.passes.merge import MergePairs, by_weights

SHARES = (1.0, 0.5, 0.25)  # of a layer's channels, at which it is measured for the fit
Shapes = Mapping[str, list[tuple[int, ...]]]


def latency_terms(gm: fx.GraphModule, graph: ChannelGraph, table: LatencyTable) -> Terms:
    """Milliseconds of one batch, as terms that evaluate like those of MACs.

    - A convolution or linear layer costs ``overhead + rate x MACs``, both non-negative, fitted (least squares of the
      relative error) to the layer alone measured with all, a half and a quarter of its channels. A pair's basis,
      coefficient and merged form are each fitted.
    - Other multiply-accumulates (attention's products, functional convolutions) cost the layers' mean rate.
    - What the whole network, its pairs in their cheaper forms, measures above that sum (norms, activations,
      additions, pooling) is shared out over the layers in proportion to the numbers they put out, and shrinks with
      their output channels. Where the whole measures *less* than its layers alone (a runtime that fuses), all terms
      are scaled to it. So the cost with nothing removed is what the network measures.

    This predicts; the sizes in between, and the effect of widths on the runtime's choice of kernels, are not
    measured. Measure the end network to know.
    """
    plain, pairs = mac_terms(gm, graph)
    shapes = graph.analysis.node_shapes
    nodes = {node.name: node for node in gm.graph.nodes}
    layers, others = [], []
    for term in plain:
        signature = _node_signature(gm, nodes[term.node], shapes, table.batch_share(graph.example_inputs))
        if signature is None:
            others.append(term)
        else:
            layers.append(_fitted(term, signature, table))
    fitted = [_fitted_pair(gm, pair, nodes, shapes, graph, table) for pair in pairs]
    known = [*layers, *(pair.merged for pair in fitted)]
    work = sum(term.cost({}) for term in [*_of(plain, known), *(pair.merged for pair in pairs)])
    rate = sum(term.cost({}) - term.overhead for term in known) / work if work else 0.0
    layers += [replace(term, constant=term.constant * rate) for term in others]
    return _anchored(gm, graph, table, layers, fitted)


def _of(terms: Iterable[Term], others: Iterable[Term]) -> list[Term]:
    names = {other.node for other in others}
    return [term for term in terms if term.node in names]


def _fitted(term: Term, signature: Signature, table: LatencyTable) -> Term:
    """``term``, a number of MACs, as the milliseconds of the layer."""
    points = {}
    for share in SHARES:
        one = signature.narrowed(share)
        points[one.macs / signature.macs] = table.layer(one)
    shares, times = np.array(list(points)), np.array(list(points.values()))
    overhead, slope = affine(shares, times)
    whole = term.cost({})
    return replace(term, constant=term.constant * slope / whole if whole else 0.0, overhead=overhead)


def affine(shares: np.ndarray, times: np.ndarray) -> tuple[float, float]:
    """Non-negative (overhead, slope) with least relative error of overhead + slope x shares against times."""
    from scipy.optimize import nnls

    weights = 1.0 / np.maximum(times, 1e-12)
    design = np.stack([np.ones_like(shares), shares], axis=1) * weights[:, None]
    (overhead, slope), _ = nnls(design, np.ones(len(shares)))
    return float(overhead), float(slope)


def _fitted_pair(
    gm: fx.GraphModule,
    pair: PairTerms,
    nodes: Mapping[str, fx.Node],
    shapes: Shapes,
    graph: ChannelGraph,
    table: LatencyTable,
) -> PairTerms:
    module = gm.get_submodule(pair.name)
    assert isinstance(module, Pair)
    share = table.batch_share(graph.example_inputs)
    forms = pair_signatures(module, *_pair_inputs(nodes[pair.basis.node], shapes, share))
    return PairTerms(
        pair.name,
        *(_fitted(term, form, table) for term, form in zip((pair.basis, pair.coefficient, pair.merged), forms)),
    )


def pair_signatures(
    pair: Pair, before: tuple[int, ...], between: tuple[int, ...]
) -> tuple[Signature, Signature, Signature]:
    """Basis, coefficient and merged layer, for inputs of shape ``before`` and what the basis makes of them.

    The shapes' channels are replaced by the pair's own.
    """
    basis = Signature.of(pair.basis, before)
    coefficient = Signature.of(pair.coefficient, between)
    return basis, coefficient, replace(basis, outputs=coefficient.outputs, bias=coefficient.bias)


def _pair_inputs(basis: fx.Node, shapes: Shapes, share: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
    source = basis.args[0]
    assert isinstance(source, fx.Node)
    return _batched(shapes[source.name][0], share), _batched(shapes[basis.name][0], share)


def _node_signature(gm: fx.GraphModule, node: fx.Node, shapes: Shapes, share: float) -> Signature | None:
    """The layer a node calls, None where it calls something else."""
    if node.op != "call_module" or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    module = gm.get_submodule(str(node.target))
    if not isinstance(module, tuple(PLAIN_TYPES)):
        return None
    return Signature.of(module, _batched(shapes[node.args[0].name][0], share))


def _batched(shape: tuple[int, ...], share: float) -> tuple[int, ...]:
    """A shape of the example batch at the table's: windows and tokens folded into the first axis scale along."""
    return (max(1, round(shape[0] * share)), *shape[1:])


def _anchored(
    gm: fx.GraphModule, graph: ChannelGraph, table: LatencyTable, plain: list[Term], pairs: list[PairTerms]
) -> Terms:
    """The terms with the rest of the whole network's measured time shared out."""
    as_two = {pair.name for pair in pairs if pair.as_two({}) < pair.merged.cost({})}
    network = copy.deepcopy(gm)
    MergePairs(lambda name, _: name in as_two)(network)
    measured = table.network(network.eval(), graph.example_inputs)
    total = sum(term.cost({}) for term in plain) + sum(pair.best({}) for pair in pairs)
    if measured <= total:
        factor = measured / total if total else 1.0
        return [_scaled(term, factor) for term in plain], [
            PairTerms(pair.name, *(_scaled(term, factor) for term in (pair.basis, pair.coefficient, pair.merged)))
            for pair in pairs
        ]
    ends = [*plain, *(pair.coefficient for pair in pairs)]
    sizes = [float(np.prod(graph.analysis.node_shapes[term.node][0])) for term in ends]
    rest = []
    for term, size in zip(ends, sizes):
        share = (measured - total) * size / sum(sizes)
        # the outputs are the last axis of a layer's MACs
        outputs = term.axes[-1] if term.axes else None
        if outputs is not None and outputs.whole:
            rest.append(Term(term.node, share / outputs.whole, (outputs,)))
        else:
            rest.append(Term(term.node, 0.0, (), overhead=share))
    return [*plain, *rest], pairs


def _scaled(term: Term, factor: float) -> Term:
    return replace(term, constant=term.constant * factor, overhead=term.overhead * factor)


class MeasuredChoice:
    """Whether a pair measures less as two layers than merged, at the sizes it has when asked.

    Args:
        gm: a graph with explicit pairs; pruning it later does not matter, as positions stay.
        shapes: node name -> shapes of its outputs, of a batch like ``gm``'s example inputs.
        table: measures.
    """

    def __init__(self, gm: fx.GraphModule, shapes: Shapes, table: LatencyTable) -> None:
        self.table = table
        self._inputs: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {}
        first = next(node for node in gm.graph.nodes if node.op == "placeholder")
        share = table.batch / max(1, shapes[first.name][0][0])
        for node in gm.graph.nodes:
            home, _, leaf = str(node.target).rpartition(".") if node.op == "call_module" else ("", "", "")
            if leaf == "basis" and isinstance(gm.get_submodule(home), Pair):
                self._inputs.setdefault(home, []).append(_pair_inputs(node, shapes, share))

    def __call__(self, name: str, pair: nn.Module) -> bool:
        """True where ``pair`` is to stay two layers."""
        assert isinstance(pair, Pair)
        if name not in self._inputs:
            return by_weights(name, pair)
        as_two = merged = 0.0
        for before, between in self._inputs[name]:
            basis, coefficient, one = pair_signatures(pair, before, between)
            as_two += self.table.layer(basis) + self.table.layer(coefficient)
            merged += self.table.layer(one)
        return as_two < merged
