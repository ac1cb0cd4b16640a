"""The parts a network's cost is the sum of, each a function of what is kept: MACs and parameters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor, fx

from edp_fx.channels import ChannelGraph
from edp_fx.channels.graph import AxisCount, Keep
from edp_fx.pairs import Pair


@dataclass(frozen=True, eq=False)
class Term:
    """``overhead`` plus ``constant`` times the living indices along each axis.

    Attributes:
        node: the graph node that the cost arises at, or a parameter's name.
    """

    node: str
    constant: float
    axes: tuple[AxisCount, ...]
    overhead: float = 0.0

    def cost(self, keep: Keep) -> float:
        """Cost under ``keep``."""
        result = self.constant
        for axis in self.axes:
            result *= axis.alive(keep)
        return result + self.overhead


@dataclass(frozen=True, eq=False)
class PairTerms:
    """One pair's costs: as two layers, and merged into one."""

    name: str
    basis: Term
    coefficient: Term
    merged: Term

    def apart(self, keep: Keep) -> float:
        """Cost as two layers."""
        return self.basis.cost(keep) + self.coefficient.cost(keep)

    def best(self, keep: Keep) -> float:
        """Cost in the cheaper form."""
        return min(self.apart(keep), self.merged.cost(keep))


Terms = tuple[list[Term], list[PairTerms]]


def mac_terms(gm: fx.GraphModule, graph: ChannelGraph) -> Terms:
    """Multiply-accumulates of the example inputs' whole batch: what stands outside pairs, and the pairs."""
    homes = _explicit_pairs(gm)
    targets = {node.name: str(node.target) for node in gm.graph.nodes}
    plain: list[Term] = []
    waiting: dict[str, Term] = {}
    pairs = []
    for site in graph.sites:
        home = homes.get(site.node)
        term = Term(site.node, site.constant, site.axes)
        if home is None:
            plain.append(term)
        elif targets[site.node].endswith(".basis"):
            waiting[home] = term
        else:
            basis = waiting[home]
            # (…, c, r) and (…, r, n): merged, the basis' kernel over the coefficient's outputs.
            merged = Term(basis.node, basis.constant, (*basis.axes[:-1], term.axes[-1]))
            pairs.append(PairTerms(home, basis, term, merged))
    return plain, pairs


def parameter_terms(gm: fx.GraphModule, graph: ChannelGraph) -> Terms:
    """Parameters that are trained, or merged from trained ones."""
    axes = graph.parameter_axes()
    names = {name for name, _ in gm.named_parameters()}
    pairs, inside = [], set()
    for home, module in gm.named_modules():
        if isinstance(module, Pair) and f"{home}.basis.weight" in axes:
            transposed = getattr(module.basis, "transposed", False)
            basis, coefficient = axes[f"{home}.basis.weight"], axes[f"{home}.coefficient.weight"]
            b_weight, c_weight = module.basis.weight, module.coefficient.weight
            assert isinstance(b_weight, Tensor) and isinstance(c_weight, Tensor)
            kernel = float(np.prod(b_weight.shape[2:]))
            rank_axis, in_axis = (1, 0) if transposed else (0, 1)
            b = [basis.get(axis, AxisCount(float(b_weight.shape[axis]), {})) for axis in (in_axis, rank_axis)]
            c = [coefficient.get(axis, AxisCount(float(c_weight.shape[axis]), {})) for axis in (1, 0)]
            pairs.append(
                PairTerms(
                    home, Term(home, kernel, tuple(b)), Term(home, 1.0, tuple(c)), Term(home, kernel, (b[0], c[1]))
                )
            )
            inside |= {f"{home}.basis.weight", f"{home}.coefficient.weight"}
    plain = []
    for name, by_axis in axes.items():
        if name in names and name not in inside:
            plain.append(Term(name, 1.0, tuple(by_axis.values())))
    scalars = sum(1 for name, p in gm.named_parameters() if name not in axes or not axes[name])
    if scalars:
        plain = [term for term in plain if term.axes] + [Term("", float(scalars), ())]
    return plain, pairs


def _explicit_pairs(gm: fx.GraphModule) -> dict[str, str]:
    """Node name of a basis or coefficient -> name of its pair."""
    found = {}
    for node in gm.graph.nodes:
        if node.op == "call_module":
            home, _, leaf = str(node.target).rpartition(".")
            if leaf in ("basis", "coefficient") and isinstance(gm.get_submodule(home), Pair):
                found[node.name] = home
    return found
