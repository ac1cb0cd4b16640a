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

FUSIONS = ("nothing", "pointwise", "layers", "products", "all")
"""What a runtime takes into one launch; batch norms are folded everywhere.

``nothing``: eager torch on a GPU. A convolution's bias, and the shift that a folded norm leaves, is added in a launch
of its own, since the library's convolution takes none; a product of matrices adds its own. ``pointwise``: compiled
torch on a GPU, where operations number by number are one launch, behind products that are the library's all the same.
``layers``: eager torch on a processor, whose convolution adds its bias. ``products``: activations and additions go into
the convolution or product before them, as in onnxruntime. ``all``: whatever computes number by number goes into the
launch before it, as in TensorRT."""
APART = ("nothing", "pointwise")
ALONE = ("nothing", "layers")  # activations and additions


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

    @property
    def is_pointwise(self) -> bool:
        return self.calls[0].family in (NORM, POINTWISE)

    @property
    def is_shift(self) -> bool:
        """Whether it adds a convolution's bias, and does no more."""
        return self.is_pointwise and self.calls[-1].reads == self.calls[-1].writes


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
        terms += _terms(analysis, launch, share, launch.calls[0].where.node in fused)
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
        if call.family == NORM or (call.family == POINTWISE and fuses not in ALONE):
            able = _taken_into(call, reads, analysis, launches, made_by, readers, fuses)
            launch = able[-1] if able else None
            if fuses == "pointwise":
                for other in able[:-1]:  # they make nothing of their own, either
                    launches.remove(other)
                    able[-1].calls[:0] = other.calls
                    able[-1].beside += [*other.reads, *other.beside]
                    reads = [number for number in reads if values[number].source != values[other.made].source]
        if launch is None:
            launch = _Launch([call], list(call.reads), call.writes[0])
            launches.append(launch)
        else:
            source = values[launch.made].source
            launch.beside += [number for number in reads if values[number].source != source]
            launch.calls.append(call)
            launch.made = call.writes[0]
        if fuses in APART and _has_bias(call):
            shift = replace(call, family=POINTWISE, reads=call.writes, sites=range(0))
            launch = _Launch([shift], list(call.writes), call.writes[0])
            launches.append(launch)
        made_by[values[launch.made].source] = launch
    return launches


def _has_bias(call: Call) -> bool:
    """Whether a convolution adds one."""
    return call.family == PRODUCTS and call.inputs > 0 and len(call.reads) > 2


def _taken_into(
    call: Call,
    reads: list[int],
    analysis: Analysis,
    launches: list[_Launch],
    made_by: dict[int, _Launch],
    readers: Counter[int],
    fuses: str,
) -> list[_Launch]:
    """The launches that may take the call along, in their order: they make for it alone what is as large as its
    result."""
    values = analysis.calls.values
    shape, found = values[call.writes[0]].shape, []
    for number in reads:
        source = values[number].source
        launch = made_by.get(source)
        if launch is None or readers[source] != 1 or _numbers(values[number].shape) != _numbers(shape):
            continue
        if fuses in APART:
            fits = launch.is_pointwise and fuses == "pointwise"
            if call.family == NORM:  # its shift is the convolution's, or the matrix product's, as far as that has one
                fits |= launch.is_shift or (launch.is_product and not launch.calls[0].inputs)
        else:
            fits = launch.is_product or (fuses == "all" and call.family == POINTWISE)
        if fits and launch not in found:
            found.append(launch)
    return sorted(found, key=launches.index)


def _numbers(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def _terms(analysis: Analysis, launch: _Launch, share: float, attention: bool) -> list[Term]:
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
        shape = values[call.writes[0]].shape
        if attention and not number:
            more = replace(more, queries=float(shape[-2]))
        positions = _numbers(shape) * share / max(1.0, site.axes[-1].whole)
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
