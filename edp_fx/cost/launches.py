"""A network as the launches of a runtime: each operation, with what the runtime fuses into it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace

import torch.nn.functional as F
from torch import fx

from edp_fx.channels import ChannelGraph
from edp_fx.channels.analysis import Analysis
from edp_fx.channels.calls import NORM, POINTWISE, Call
from edp_fx.channels.calls import PRODUCT as PRODUCTS
from edp_fx.cost.terms import PairTerms, Term, Terms, pair_calls
from edp_fx.cost.work import CONVOLUTION, DEPTHWISE, GROUPED, MATRICES, MEMORY, Size, Work
from edp_fx.frontend.layers import AttentionDropout
from edp_fx.frontend.running import called_module

FUSIONS = ("nothing", "products", "all")
"""What a runtime takes into the launch before it, beside batch norms, which all fold: nothing, as eager torch does;
activations and additions behind convolutions and matrix products, as onnxruntime does; or whatever computes number by
number, as TensorRT and compiled torch do, which also run attention in one launch (as does eager torch)."""


@dataclass(eq=False)
class _Launch:
    """While launches are gathered.

    Attributes:
        calls: what it runs, in order.
        reads: values that it reads, by number; ``made``: the one it leaves.
    """

    calls: list[Call]
    reads: list[int]
    made: int
    beside: list[int] = field(default_factory=list)

    @property
    def is_product(self) -> bool:
        return self.calls[0].family == PRODUCTS


def launch_terms(gm: fx.GraphModule, graph: ChannelGraph, fuses: str, batch: int, attention: bool = True) -> Terms:
    """Every launch of a network of explicit pairs as a term with its :class:`~edp_fx.cost.work.Work`, and the pairs.

    Args:
        gm: the network.
        graph: its analysis.
        fuses: one of :data:`FUSIONS`.
        batch: images a call.
        attention: whether attention is one launch.
    """
    analysis = graph.analysis
    share = batch / max(1, graph.example_inputs[0].shape[0])
    terms: list[Term] = []
    fused = {node.name for node in gm.graph.nodes if attention and _is_attention(gm, node)}
    for launch in _launches(analysis, fuses, fused):
        terms += _terms(analysis, launch, share)
    return _with_pairs(gm, terms)


def _is_attention(gm: fx.GraphModule, node: fx.Node) -> bool:
    return node.target is F.scaled_dot_product_attention or isinstance(called_module(gm, node), AttentionDropout)


def _launches(analysis: Analysis, fuses: str, whole: set[str]) -> list[_Launch]:
    values, calls = analysis.calls.values, analysis.calls.calls
    readers = Counter(source for call in calls for source in {values[number].source for number in call.reads})
    made_by: dict[int, _Launch] = {}
    launches: list[_Launch] = []
    for call in calls:
        reads = [number for number in call.reads if not values[number].constant]
        last = launches[-1] if launches else None
        if last is not None and call.where.node in whole and last.calls[0].where.node == call.where.node:
            inside = {values[last.made].source, *(values[one].source for each in last.calls for one in each.writes)}
            last.reads += [number for number in call.reads if values[number].source not in inside]
            last.calls.append(call)
            last.made = call.writes[0]
            made_by[values[last.made].source] = last
            continue
        launch = None
        if call.family == NORM or (call.family == POINTWISE and fuses != "nothing"):
            launch = _taken_into(call, reads, analysis, made_by, readers, fuses)
        if launch is None:
            launch = _Launch([call], list(call.reads), call.writes[0])
            launches.append(launch)
        else:
            source = values[launch.made].source
            launch.beside += [number for number in reads if values[number].source != source]
            launch.calls.append(call)
            launch.made = call.writes[0]
        made_by[values[launch.made].source] = launch
    return launches


def _taken_into(
    call: Call, reads: list[int], analysis: Analysis, made_by: dict[int, _Launch], readers: Counter[int], fuses: str
) -> _Launch | None:
    """The launch that takes the call along: the last of those that make for it alone what is as large as its result."""
    values = analysis.calls.values
    shape, found = values[call.writes[0]].shape, None
    for number in reads:
        source = values[number].source
        launch = made_by.get(source)
        if launch is None or readers[source] != 1 or _numbers(values[number].shape) != _numbers(shape):
            continue
        if not launch.is_product and (fuses != "all" or call.family == NORM):
            continue
        found = launch
    return found


def _numbers(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def _terms(analysis: Analysis, launch: _Launch, share: float) -> list[Term]:
    """A launch's terms: one, or one more for each further product in it."""
    first = launch.calls[0]
    values = analysis.calls.values

    def sizes(numbers: list[int]) -> tuple[Size, ...]:
        found = []
        for number in numbers:
            if values[number].floating:
                constant, axes = analysis.value_size(number)
                found.append(Size(constant if values[number].constant else constant * share, axes))
        return tuple(found)

    given = [number for number in launch.reads if not values[number].constant]
    weight = [number for number in launch.reads if values[number].constant]
    work = Work(MEMORY, sizes(given), sizes(weight), sizes([launch.made]), sizes(launch.beside))
    sites = [(call, position) for call in launch.calls for position in call.sites]
    if not sites:
        return [Term(first.where.node, 0.0, (), work=work)]
    terms = []
    for number, (call, position) in enumerate(sites):
        site = analysis.sites[position]
        more = work if not number else Work(MEMORY, launches=0.0)
        family = MATRICES if not call.inputs else CONVOLUTION
        if call.groups > 1:
            family = DEPTHWISE if call.inputs == 1 else GROUPED
        more = replace(more, family=family, taps=float(call.taps), groups=float(call.groups))
        positions = _numbers(values[call.writes[0]].shape) * share / max(1.0, site.axes[-1].whole)
        terms.append(Term(site.node, site.constant * share, site.axes, positions=positions, work=more))
    return terms


def _with_pairs(gm: fx.GraphModule, terms: list[Term]) -> Terms:
    calls = pair_calls(gm)
    inside = {term.node: term for term in terms if term.node in {name for call in calls for name in call[1:]}}
    plain = [term for term in terms if term.node not in inside]
    pairs = []
    for home, first, second in calls:
        if first in inside and second in inside:
            basis, coefficient = inside.pop(first), inside.pop(second)
            axes = (*basis.axes[:-1], coefficient.axes[-1])
            assert basis.work is not None and coefficient.work is not None
            work = basis.work.merged(coefficient.work, axes[0], axes[-1])
            merged = replace(basis, axes=axes, positions=coefficient.positions, work=work)
            pairs.append(PairTerms(home, basis, coefficient, merged))
    return [*plain, *inside.values()], pairs
