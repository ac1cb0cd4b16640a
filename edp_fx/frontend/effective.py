"""Where a graph applies a linear map with learned weights, and with which effective weight.

A layer may be plain, or a subclass that pads its input or computes its weight (weight standardisation, spectral
norm), or a functional call on parameters. All reduce to one thing: a functional convolution or linear map whose
weight depends on parameters only. Such a weight is evaluated; what happens to the input before stays in the graph.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from edp_fx.frontend.linear_map import evaluated, linear_map
from edp_fx.frontend.weights import entries, expression
from edp_fx.geometry import FUNCTIONS, Geometry, layer_arguments, plain_kind
from edp_fx.inputs import COMPUTE_LAYERS
from edp_fx.pairs import Pair


@dataclass
class Site:
    """One use of a layer in a graph.

    Attributes:
        name: the layer's name, for people; two that do not share a pair have two names.
        node: the node of the graph that is the layer.
        home: where the pair is put.
        module: the layer's module, None for a functional call.
        reads: parameters that the replaced code reads, by name.
        origin: what the weight is computed from, and how; equal for weights that are one.
        bias_origin: the same of the bias.
        entries: the entries of each tensor, by id, that the weight takes.
        refusal: why it cannot be decomposed, None when it can.
    """

    name: str
    node: fx.Node
    home: str
    module: nn.Module | None = None
    geometry: Geometry | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = True
    refusal: str | None = None
    reads: set[str] = field(default_factory=set)
    origin: Hashable = None
    bias_origin: Hashable = None
    entries: dict[int, np.ndarray] = field(default_factory=dict)
    _rewrite: Callable[[fx.GraphModule, str, Pair], None] | None = None

    @property
    def tie(self) -> Hashable:
        """Equal for sites that can share the weights of a pair."""
        return (self.origin, *((self.geometry.kind, self.geometry.groups) if self.geometry else ()))

    def rewrite(self, gm: fx.GraphModule, home: str, pair: Pair) -> None:
        """Put basis and coefficient in the place of the node."""
        if self._rewrite is not None:
            self._rewrite(gm, home, pair)
            return
        args = self.node.args
        options = dict(self.node.kwargs)
        options.pop("output_size", None)
        source = args[0] if args else options["input"]
        with gm.graph.inserting_before(self.node):
            last = emit_pair(gm.graph, home, pair, source, self.node)
        self.node.replace_all_uses_with(last)
        gm.graph.erase_node(self.node)


def emit_pair(graph: fx.Graph, home: str, pair: Pair, source: Any, like: fx.Node) -> fx.Node:
    """Nodes for basis and coefficient at the insertion point, with shapes; returns the coefficient's."""
    basis = graph.call_module(f"{home}.basis", (source,))
    coefficient = graph.call_module(f"{home}.coefficient", (basis,))
    coefficient.meta = dict(like.meta)
    basis.meta = dict(like.meta)
    value = like.meta.get("val")
    if isinstance(value, Tensor):
        shape = list(value.shape)
        shape[-1 - pair.geometry.dims] = pair.rank * pair.groups
        basis.meta["val"] = value.new_empty(shape)
    return coefficient


def find_sites(gm: fx.GraphModule) -> list[Site]:
    """Every use of a layer, in the order of execution."""
    sites: list[Site] = []
    inlined: dict[int, tuple[Any, Site]] = {}
    for node in gm.graph.nodes:
        if node.op == "call_module":
            module = gm.get_submodule(str(node.target))
            if isinstance(module, COMPUTE_LAYERS):
                sites.append(_module_site(gm, node, module, inlined))
        elif node.op == "call_function" and node.target in FUNCTIONS:
            sites.append(functional_site(gm, node))
    _name_apart(gm, sites)
    return sites


def _name_apart(gm: fx.GraphModule, sites: list[Site]) -> None:
    """Sites are named by the parameter they read; of one parameter there may be several."""
    taken = {site.name: None for site in sites if site.module is not None}
    known: dict[Hashable, tuple[str, str]] = {}
    count: Counter[str] = Counter()
    for site in sites:
        if site.module is not None or site.geometry is None:
            continue
        key = (site.tie, site.bias_origin, site.geometry)
        if key not in known:
            name = site.name
            while name in taken:
                count[site.name] += 1
                name = f"{site.name}_{count[site.name] + 1}"
            taken[name] = None
            known[key] = name, site.home if name == site.name else _free_home(gm, name, site.reads)
        site.name, site.home = known[key]


def _module_site(gm: fx.GraphModule, node: fx.Node, module: nn.Module, known: dict[int, Any]) -> Site:
    name = str(node.target)
    site = Site(name, node, name, module, training=module.training)
    if name.endswith((".basis", ".coefficient")) and isinstance(gm.get_submodule(name.rpartition(".")[0]), Pair):
        site.refusal = "already part of a pair"
    elif module._forward_hooks or module._forward_pre_hooks:
        site.refusal = "it has forward hooks, which see the layer as it is"
    elif plain_kind(module) is not None and not _computed(module):
        site.geometry = Geometry.of(module)
        site.weight, site.bias = module.weight, module.bias  # type: ignore[assignment]
        site.origin = ("tensor", id(module.weight))
        site.entries = {id(module.weight): np.ones(module.weight.numel(), dtype=bool)}  # type: ignore[operator]
        if "output_size" in node.kwargs or len(node.args) > 1:
            site.refusal = "it is called with an output size"
    else:
        _inline(site, node, module, known)
    return site


def _computed(module: nn.Module) -> bool:
    """Whether the weight is a property (a parametrisation) instead of a parameter."""
    return "weight" not in module._parameters or (
        getattr(module, "bias", None) is not None and "bias" not in module._parameters
    )


# Subclasses: trace the layer's own forward, find its one linear map --------------------------------------------


def _inline(site: Site, node: fx.Node, module: nn.Module, known: dict[int, Any]) -> None:
    if id(module) not in known:
        moving = "its weight is another in train mode, by what it keeps in buffers"
        known[id(module)] = moving if _moves_in_training(module) else linear_map(node, module)
    found = known[id(module)]
    if isinstance(found, str):
        site.refusal = found
        return
    site.geometry, site.weight, site.bias = found.geometry, found.weight, found.bias
    site.origin = ("module", id(module))
    site.entries = {id(one): np.ones(one.numel(), dtype=bool) for one in module.parameters()}

    def rewrite(gm: fx.GraphModule, home: str, pair: Pair) -> None:
        found.replace(gm, node, home, module, lambda source, like: emit_pair(gm.graph, home, pair, source, like))

    site._rewrite = rewrite


@torch.no_grad()
def _moves_in_training(module: nn.Module) -> bool:
    """Whether the weight differs between the modes, as that of spectral norm, which estimates its scale in training."""
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
    if not kept:
        return False
    modes = [(one, one.training) for one in module.modules()]
    try:
        evaluated = torch.as_tensor(module.eval().weight).clone()
        return not torch.equal(evaluated, torch.as_tensor(module.train().weight))
    finally:
        for buffer, before in kept:
            buffer.copy_(before)
        for one, mode in modes:
            one.training = mode


# Functional calls ----------------------------------------------------------------------------------------------


def functional_site(gm: fx.GraphModule, node: fx.Node) -> Site:
    """The layer that a call of a function computes: where its weight comes from, or why that is unknown."""
    found = layer_arguments(node)
    site = Site(node.name, node, node.name, training=gm.training)
    weight, bias = found["weight"], found.get("bias")
    constants = _ancestors(weight)
    if constants is None:
        site.refusal = "its weight is computed from the input"
        return site
    site.reads = {str(one.target) for one in constants if one.op == "get_attr"}
    if not any(isinstance(operator.attrgetter(name)(gm), nn.Parameter) for name in site.reads):
        site.refusal = "its weight is a constant, not learned"
        return site
    first = sorted(site.reads)[0]
    site.name = first.removesuffix("weight").rstrip("._") or node.name
    # A bias that is itself a parameter goes into the pair; a computed one is added after it.
    own_bias = isinstance(bias, fx.Node) and bias.op == "get_attr" and set(bias.users) == {node}
    known: set[Any] = {*constants, bias} if own_bias else set(constants)
    if not own_bias:
        found.pop("bias", None)
    found_map = evaluated(gm, node, found, known)
    if isinstance(found_map, str):
        site.refusal = found_map
        return site
    site.geometry, site.weight, site.bias = found_map
    if own_bias:
        assert isinstance(bias, fx.Node)
        site.reads.add(str(bias.target))
        site.bias_origin = expression(gm, bias)
    site.origin, site.entries = expression(gm, weight), entries(gm, weight)
    site.home = _free_home(gm, site.name, site.reads)
    if not own_bias and bias is not None and site.geometry.dims:
        site.refusal = "its bias is computed in the graph"

    def rewrite(gm: fx.GraphModule, home: str, pair: Pair) -> None:
        now = layer_arguments(node)  # the layer before it may be a pair by now
        with gm.graph.inserting_before(node):
            last: Any = emit_pair(gm.graph, home, pair, now["input"], node)
            if not own_bias and now.get("bias") is not None:
                last = gm.graph.call_function(torch.add, (last, now["bias"]))
                last.meta = dict(node.meta)
        node.replace_all_uses_with(last)
        gm.graph.erase_node(node)

    site._rewrite = rewrite
    return site


def _ancestors(weight: Any) -> set[fx.Node] | None:
    """The nodes a weight is computed from, None when an input or a module is among them."""
    if not isinstance(weight, fx.Node):
        return None
    found, pending = set(), [weight]
    while pending:
        node = pending.pop()
        if node in found:
            continue
        if node.op not in ("get_attr", "call_function", "call_method") or (
            node.op != "get_attr" and not node.all_input_nodes
        ):
            return None
        found.add(node)
        pending += node.all_input_nodes
    return found


def _free_home(gm: fx.GraphModule, name: str, reads: set[str]) -> str:
    """``name`` where no module that will still be needed is there, else a name beside it."""
    try:
        module = gm.get_submodule(name)
    except AttributeError:
        path, _, leaf = name.rpartition(".")
        return f"{name}_pair" if hasattr(gm.get_submodule(path), leaf) else name
    held = {f"{name}.{leaf}" for leaf in (*module._parameters, *module._buffers, *module._modules)}
    return name if type(module) is nn.Module and held <= reads else f"{name}_pair"
