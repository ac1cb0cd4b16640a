"""What a network costs: as a function of what is kept (for budgets), and measured (for reports)."""

from __future__ import annotations

import statistics
import time
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from edp_fx.channels import ChannelGraph
from edp_fx.channels.graph import AxisCount, CostSite, Keep
from edp_fx.channels.sweep import to_meta
from edp_fx.errors import BudgetError
from edp_fx.inputs import normalize
from edp_fx.pairs import Pair

METRICS = ("macs", "params")


@dataclass(frozen=True, eq=False)
class _PairCost:
    """One pair's costs: as two layers, and merged into one."""

    name: str
    basis: CostSite
    coefficient: CostSite
    merged: CostSite


class CostModel:
    """Cost of a network with explicit pairs under any keep-set, every pair counted as min(pair, merged).

    ``metric``: ``"macs"`` (multiply-accumulates of one sample) or ``"params"`` (parameters that are trained or merged
    from trained ones). ``dense`` is the cost with nothing removed, all pairs merged: the original network's.
    """

    def __init__(self, gm: fx.GraphModule, graph: ChannelGraph, metric: str = "macs") -> None:
        if metric not in METRICS:
            raise BudgetError(f"cost metric {metric!r} is unknown: use one of {', '.join(METRICS)}")
        self.graph = graph
        self.metric = metric
        self._scale = 1.0
        if metric == "macs":
            self._plain, self._pairs = _mac_terms(gm, graph)
            self._scale = 1.0 / max(1, graph.example_inputs[0].shape[0])
        else:
            self._plain, self._pairs = _parameter_terms(gm, graph)
        self._touched = self._terms_by_group()
        self.dense = self.total({})

    @property
    def terms(self) -> tuple[list[CostSite], list[_PairCost], float]:
        """Terms outside pairs, pairs, and the factor of their sum: for evaluation in bulk."""
        return self._plain, self._pairs, self._scale

    def total(self, keep: Keep) -> float:
        """Cost under ``keep``, every pair at the cheaper of its two forms."""
        cost = sum(term.macs(keep) for term in self._plain)
        cost += sum(_best(pair, keep) for pair in self._pairs)
        return cost * self._scale

    def marginal(self, keep: Keep) -> dict[int, float]:
        """Group id -> cost saved by removing one more (average kept) element of it, by finite difference.

        Where a rank only pays once the pair is cheaper than the merged layer, the saving per rank on the way to one
        is given, so that ranks above the break-even still have a price.
        """
        now = {id(term): term.macs(keep) for term in self._plain}
        now_pairs = {pair.name: _best(pair, keep) for pair in self._pairs}
        saved: dict[int, float] = {}
        for group in self.graph.prunable:
            plain, pairs = self._touched.get(group.id, ([], []))
            kept = np.asarray(keep.get(group.id, np.ones(group.size, dtype=bool)), dtype=np.float64)
            alive = kept.sum()
            if alive < 1:
                continue
            fewer = {**keep, group.id: kept * (alive - 1) / alive}
            gain = sum(now[id(term)] - term.macs(fewer) for term in plain)
            gain += sum(now_pairs[pair.name] - _best(pair, fewer) for pair in pairs)
            if group.kind == "rank" and gain <= 0 and alive > 1:
                least = {**keep, group.id: kept / alive}
                gain = sum(now_pairs[pair.name] - _best(pair, least) for pair in pairs) / (alive - 1)
            saved[group.id] = max(0.0, gain) * self._scale
        return saved

    def pair_is_cheaper(self, name: str, keep: Keep | None = None) -> bool:
        """Whether pair ``name`` costs less as two layers than merged."""
        pair = next(one for one in self._pairs if one.name == name)
        keep = keep or {}
        return pair.basis.macs(keep) + pair.coefficient.macs(keep) < pair.merged.macs(keep)

    def _terms_by_group(self) -> dict[int, tuple[list[CostSite], list[_PairCost]]]:
        touched: dict[int, tuple[list[CostSite], list[_PairCost]]] = {}
        for term in self._plain:
            for group in _groups(term):
                touched.setdefault(group, ([], []))[0].append(term)
        for pair in self._pairs:
            for group in _groups(pair.basis) | _groups(pair.coefficient):
                touched.setdefault(group, ([], []))[1].append(pair)
        return touched


def _best(pair: _PairCost, keep: Keep) -> float:
    return min(pair.basis.macs(keep) + pair.coefficient.macs(keep), pair.merged.macs(keep))


def _groups(term: CostSite) -> set[int]:
    return {group for axis in term.axes for group in axis.weights}


def _explicit_pairs(gm: fx.GraphModule) -> dict[str, str]:
    """Node name of a basis or coefficient -> name of its pair."""
    found = {}
    for node in gm.graph.nodes:
        if node.op == "call_module":
            home, _, leaf = str(node.target).rpartition(".")
            if leaf in ("basis", "coefficient") and isinstance(gm.get_submodule(home), Pair):
                found[node.name] = home
    return found


def _mac_terms(gm: fx.GraphModule, graph: ChannelGraph) -> tuple[list[CostSite], list[_PairCost]]:
    homes = _explicit_pairs(gm)
    targets = {node.name: str(node.target) for node in gm.graph.nodes}
    plain: list[CostSite] = []
    waiting: dict[str, CostSite] = {}
    pairs = []
    for site in graph.sites:
        home = homes.get(site.node)
        if home is None:
            plain.append(site)
        elif targets[site.node].endswith(".basis"):
            waiting[home] = site
        else:
            basis = waiting[home]
            # (…, c, r) and (…, r, n): merged, the basis' kernel over the coefficient's outputs.
            merged = CostSite(basis.node, basis.op, basis.constant, (*basis.axes[:-1], site.axes[-1]))
            pairs.append(_PairCost(home, basis, site, merged))
    return plain, pairs


def _parameter_terms(gm: fx.GraphModule, graph: ChannelGraph) -> tuple[list[CostSite], list[_PairCost]]:
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
                _PairCost(
                    home,
                    CostSite(home, "basis", kernel, tuple(b)),
                    CostSite(home, "coefficient", 1.0, tuple(c)),
                    CostSite(home, "merged", kernel, (b[0], c[1])),
                )
            )
            inside |= {f"{home}.basis.weight", f"{home}.coefficient.weight"}
    plain = []
    for name, by_axis in axes.items():
        if name in names and name not in inside:
            plain.append(CostSite(name, "parameter", 1.0, tuple(by_axis.values())))
    scalars = sum(1 for name, p in gm.named_parameters() if name not in axes or not axes[name])
    if scalars:
        plain = [term for term in plain if term.axes] + [CostSite("", "scalars", float(scalars), ())]
    return plain, pairs


# -- measured ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measurement:
    """Of one network: MACs and peak activation bytes of one sample, parameters, latency of the given batch in ms."""

    macs: float
    params: int
    activation_bytes: int
    latency_ms: float | None


def measure(model: nn.Module, example_inputs: Any, latency_runs: int = 0) -> Measurement:
    """Count and, with ``latency_runs`` > 0, time ``model`` in eval mode.

    MACs are half of what ``torch.utils.flop_counter`` counts (convolutions, matrix products, attention). Activation
    memory is the largest sum of tensors alive at once, weights left out. Latency is the median of ``latency_runs``
    runs of the given inputs by torch on the model's own device, after three warm-ups.
    """
    inputs = normalize(example_inputs)
    samples = inputs[0].shape[0]
    meta, _ = to_meta(model)
    meta.eval()
    shapes = tree_map(lambda x: torch.empty_like(x, device="meta") if isinstance(x, Tensor) else x, inputs)
    counter = FlopCounterMode(display=False)
    memory = _ActivationMemory()
    with torch.no_grad(), torch.device("meta"), counter:
        meta(*shapes)
    with torch.no_grad(), torch.device("meta"), memory:
        fx.Interpreter(meta).run(*shapes) if isinstance(meta, fx.GraphModule) else meta(*shapes)
    latency = median_latency(model, inputs, latency_runs) if latency_runs else None
    return Measurement(
        macs=counter.get_total_flops() / 2 / samples,
        params=sum(parameter.numel() for parameter in model.parameters()),
        activation_bytes=memory.peak // samples,
        latency_ms=latency,
    )


def median_latency(model: nn.Module, inputs: tuple[Any, ...], runs: int) -> float:
    """Median milliseconds of one forward pass in eval mode."""
    was_training = model.training
    model.eval()
    on_gpu = any(isinstance(x, Tensor) and x.is_cuda for x in inputs)
    times = []
    with torch.no_grad():
        for k in range(runs + 3):
            start = time.perf_counter()
            model(*inputs)
            if on_gpu:
                torch.cuda.synchronize()
            if k >= 3:
                times.append(time.perf_counter() - start)
    model.train(was_training)
    return 1000 * statistics.median(times)


class _ActivationMemory(TorchDispatchMode):
    """Bytes of the tensors made inside and still alive; a view counts nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and not func._schema.is_mutable:
                storage = leaf.untyped_storage()
                key = storage._cdata
                if key not in self._known and not _is_view_of(leaf, args):
                    self._known.add(key)
                    self.alive += storage.nbytes()
                    self.peak = max(self.peak, self.alive)
                    weakref.finalize(storage, self._free, key, storage.nbytes())
        return result

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


def _is_view_of(tensor: Tensor, args: Any) -> bool:
    key = tensor.untyped_storage()._cdata
    return any(isinstance(x, Tensor) and x.untyped_storage()._cdata == key for x in tree_leaves(args))
