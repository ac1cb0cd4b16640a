"""Replaces layers by compressed-aware pairs, of filters (NAME.basis, then NAME.coefficient) or of kernels
(NAME.depthwise, then NAME.pointwise)."""

from __future__ import annotations

import time
from collections.abc import Collection, Hashable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

from torch import Tensor, fx, nn

from edp_fx.channels.kernels import find_kernels
from edp_fx.errors import PassError
from edp_fx.frontend.effective import Site, find_sites
from edp_fx.frontend.normal_form import remove_dead_code
from edp_fx.frontend.propagate import evaluate
from edp_fx.frontend.shapes import ShapeMode
from edp_fx.geometry import FUNCTIONS, Geometry, plain_kind
from edp_fx.inputs import COMPUTE_LAYERS, eval_mode
from edp_fx.pairs import Pair
from edp_fx.passes.base import Pass, PassReport, PassResult
from edp_fx.passes.kernel_pairs import insert_kernel_pair

KINDS = tuple(FUNCTIONS.values())
FORMS = ("filters", "kernels")


@dataclass(frozen=True)
class InsertPairs(Pass):
    """Decompose every eligible convolution and linear layer, leaving the function as it is.

    Attributes:
        layers: name patterns (``*`` and ``?``) of the layers to take.
        exclude: name patterns of layers to leave.
        types: kinds to take: linear, conv1d … conv3d, conv_transpose1d … conv_transpose3d.
        leave_first: leave the first layer of the network as it is.
        leave_last: leave the last one.
        start: "spectral", singular vectors of the weight, or "identity", for training from scratch.
        rank: basis filters a group at the start: a number, or a fraction of the full rank; None is the full rank.
        energy: instead of a rank, the share (0..1] of the squared singular values to keep in each layer.
        form: which side of the weight the basis is of. "filters": filters over all input channels, mixed by the
            coefficient. "kernels": of each input channel its own, a depthwise convolution, mixed by a pointwise one;
            for plain convolutions of more than one tap, with ``rank`` counting kernels per input channel.
    """

    name: ClassVar[str] = "insert"
    preserves: ClassVar[bool] = True

    layers: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    types: tuple[str, ...] = KINDS
    leave_first: bool = False
    leave_last: bool = False
    start: str = "spectral"
    rank: int | float | None = None
    energy: float | None = None
    form: str = "filters"

    def requires(self, gm: fx.GraphModule) -> None:
        """Options make sense, and the graph has shapes.

        Raises:
            PassError: an option or the graph is not fit.
        """
        unknown = set(self.types) - set(KINDS)
        if unknown:
            raise PassError(f"insert: unknown layer type {sorted(unknown)[0]!r}; choose from {', '.join(KINDS)}")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise PassError(f"insert: energy {self.energy!r} is not within 0..1")
        if self.start not in ("spectral", "identity"):
            raise PassError(f"insert: start {self.start!r} is not known; choose 'spectral' or 'identity'")
        if self.form not in FORMS:
            raise PassError(f"insert: form {self.form!r} is not known; choose from {', '.join(FORMS)}")
        if self.form == "kernels":
            if self.energy is not None:
                raise PassError("insert: kernels are counted by rank; leave energy out")
            return
        bare = next((node.name for node in gm.graph.nodes if "val" not in node.meta), None)
        if bare is not None:
            raise PassError(f"insert: node {bare!r} has no shape; trace with edp_fx.trace or run propagate first")

    def call(self, gm: fx.GraphModule) -> PassResult:
        """Insert the pairs into ``gm``."""
        began = time.perf_counter()
        report = PassReport(self.name)
        if self.form == "kernels":
            return self._of_kernels(gm, report)
        sites = [site for site in find_sites(gm) if self._wanted(site, report)]
        if self.leave_first and sites:
            self._leave(sites, sites[0].name, "the first layer, left by option", report)
        if self.leave_last and sites:
            self._leave(sites, sites[-1].name, "the last layer, left by option", report)
        sites = self._without_foreign_ties(gm, sites, report)
        before = {name for site in sites for name in site.reads}
        pairs: dict[Hashable, Pair] = {}
        homes: dict[str, Pair] = {}
        owners = _owners(gm)
        for site in sites:
            home = site.home
            if home in homes:
                pair = homes[home]
            else:
                pair = self._pair(site, pairs)
                homes[home] = pair
                report.rewritten.append(site.name)
                if site.module is not None:
                    _replace(owners, site.module, pair)
                _place(gm, home, pair)
            site.rewrite(gm, home, pair)
        self._inside_opaque(gm, report)
        remove_dead_code(gm.graph)
        _drop_orphans(gm, before)
        gm.recompile()
        report.facts.update(
            layers=len(report.rewritten),
            refused=len(report.refused),
            seconds=round(time.perf_counter() - began, 3),
        )
        return PassResult(gm, bool(report.rewritten), report)

    def ensures(self, result: PassResult) -> None:
        """Every rewritten layer is a pair, and the graph shows its two halves unless it is inside a leaf.

        Raises:
            PassError: naming the layer of which that does not hold.
        """
        gm = result.graph_module
        if self.form == "kernels":
            calls = [str(node.target) for node in gm.graph.nodes if node.op == "call_module"]
            for name in result.report.rewritten:
                if calls.count(f"{name}.depthwise") != 1 or calls.count(f"{name}.pointwise") != 1:
                    raise PassError(f"insert: layer {name!r} is not a depthwise and a pointwise one")
            return
        for name in result.report.rewritten:
            if not any(isinstance(_module(gm, one), Pair) for one in (name, f"{name}_pair")):
                raise PassError(f"insert: layer {name!r} did not become a pair")

    def _of_kernels(self, gm: fx.GraphModule, report: PassReport) -> PassResult:
        found = {layer.name: layer for layer in find_kernels(gm, least_inputs=1)}
        for name, layer in found.items():
            reason = self.leave.get(name) or self._unnamed(name)
            if reason is None:
                insert_kernel_pair(gm, layer, self.rank)
                report.rewritten.append(name)
            else:
                report.refuse(name, reason)
        for name, module in gm.named_modules():
            if isinstance(module, COMPUTE_LAYERS) and name not in found and not _inside(name, found):
                report.refuse(name, "no plain convolution of several taps that is called once and not grouped")
        if report.rewritten:
            gm.recompile()
        return PassResult(gm, bool(report.rewritten), report)

    def _unnamed(self, name: str) -> str | None:
        if not any(fnmatchcase(name, pattern) for pattern in self.layers):
            return "not among the layers asked for"
        return "excluded by option" if any(fnmatchcase(name, pattern) for pattern in self.exclude) else None

    # Choice ----------------------------------------------------------------------------------------------------

    def _wanted(self, site: Site, report: PassReport) -> bool:
        reason = self.leave.get(site.name) or site.refusal or self._refusal(site.name, site.geometry, site.weight)
        if reason is not None:
            report.refuse(site.name, reason)
        return reason is None

    def _refusal(self, name: str, geometry: Geometry | None, weight: Tensor | None) -> str | None:
        if geometry is None or weight is None:
            return "its geometry is not known"
        unnamed = self._unnamed(name)
        if unnamed is not None:
            return unnamed
        if geometry.kind not in self.types:
            return f"its type {geometry.kind} was not asked for"
        if not weight.is_floating_point():
            return f"its weight is {weight.dtype}"
        _, n, m = geometry.matrices(weight).shape
        kernel = int(weight[0, 0].numel())
        if geometry.groups > 1 and m == kernel:
            return "depthwise: one input channel a group"
        if n * m <= n + m:
            return f"no rank saves anything: the weight of a group is {n} x {m}"
        return None

    def _leave(self, sites: list[Site], name: str, reason: str, report: PassReport) -> None:
        sites[:] = [site for site in sites if site.name != name]
        report.refuse(name, reason)

    def _without_foreign_ties(self, gm: fx.GraphModule, sites: list[Site], report: PassReport) -> list[Site]:
        """Leave out sites whose weight something else reads too: it would no longer be tied."""
        nodes = {site.node for site in sites}
        targets = {id(site.module) for site in sites if site.module is not None}
        readers: dict[int, str] = {}
        for node in gm.graph.nodes:
            if node in nodes:
                continue
            if node.op == "call_module":
                module = _module(gm, str(node.target))
                if module is None or id(module) in targets:
                    continue
                readers.update({id(p): node.name for p in module.parameters()})
            elif node.op == "get_attr" and not set(node.users) <= nodes | _constant_users(nodes):
                readers[id(_attribute(gm, str(node.target)))] = node.name
        of_tensor: dict[int, list[Site]] = {}
        for site in sites:
            for tensor in site.entries:
                of_tensor.setdefault(tensor, []).append(site)
        kept = []
        for site in sites:
            tied = next((readers[one] for one in site.entries if one in readers), None)
            beside = (one for tensor in site.entries for one in of_tensor[tensor] if one.tie != site.tie)
            other = next((one.name for one in beside if _overlap(one, site)), None)
            if tied is not None:
                report.refuse(site.name, f"its weight is also used by {tied}")
            elif other is not None:
                report.refuse(site.name, f"its weight is that of {other} in another form, and would no longer be tied")
            else:
                kept.append(site)
        return kept

    # Making ----------------------------------------------------------------------------------------------------

    def _pair(self, site: Site, pairs: dict[Hashable, Pair]) -> Pair:
        weight, geometry = site.weight, site.geometry
        assert weight is not None
        assert geometry is not None
        known = pairs.get(site.tie)
        if known is None:
            pair = Pair.from_weight(geometry, weight, site.bias, self.start, self.rank, self.energy)
            pairs[site.tie] = pair
        else:  # tied weights stay tied
            basis, mixing = known.basis, known.coefficient
            pair = Pair(
                geometry.layer(basis.weight, None),  # type: ignore[arg-type]
                geometry.pointwise().layer(mixing.weight, site.bias),  # type: ignore[arg-type]
            )
        return pair.train(site.training)

    def _inside_opaque(self, gm: fx.GraphModule, report: PassReport) -> None:
        for node in list(gm.graph.nodes):
            if node.op != "call_module":
                continue
            leaf = _module(gm, str(node.target))
            if leaf is None or isinstance(leaf, (*COMPUTE_LAYERS, Pair)):
                continue
            for path, layer in list(leaf.named_modules()):
                if not path or not isinstance(layer, COMPUTE_LAYERS):
                    continue
                name = f"{node.target}.{path}"
                reason = None
                if plain_kind(layer) is None:
                    reason = f"{type(layer).__name__} inside an opaque module computes its weight or padding itself"
                else:
                    reason = self.leave.get(name) or self._refusal(name, Geometry.of(layer), layer.weight)
                if reason is None:
                    pair = Pair.from_layer(layer, self.start, self.rank, self.energy)
                    reason = _swap(gm, node, leaf, path, pair)
                if reason is None:
                    report.rewritten.append(name)
                else:
                    report.refuse(name, reason)


def _overlap(one: Site, other: Site) -> bool:
    """Whether two weights take an entry of the same tensor."""
    shared = one.entries.keys() & other.entries.keys()
    return any(bool((one.entries[tensor] & other.entries[tensor]).any()) for tensor in shared)


def _swap(gm: fx.GraphModule, node: fx.Node, leaf: nn.Module, path: str, pair: Pair) -> str | None:
    """Put a pair into an opaque leaf; the reason when the leaf's code does not run with it."""
    owner, _, name = path.rpartition(".")
    parent = leaf.get_submodule(owner)
    old = parent._modules[name]
    parent._modules[name] = pair
    try:
        with eval_mode(leaf):
            evaluate(gm, node, ShapeMode(next(leaf.parameters()).device))
        return None
    except Exception as error:
        parent._modules[name] = old
        return f"the opaque module around it does not run with a pair: {type(error).__name__}: {error}"


def _inside(name: str, layers: Collection[str]) -> bool:
    """Whether a layer is one of the two that one of ``layers`` was or became."""
    return name.rpartition(".")[0] in layers


def _module(gm: nn.Module, path: str) -> nn.Module | None:
    try:
        return gm.get_submodule(path)
    except AttributeError:
        return None


def _attribute(gm: nn.Module, name: str) -> Any:
    value: Any = gm
    for atom in name.split("."):
        value = getattr(value, atom)
    return value


def _constant_users(nodes: set[fx.Node]) -> set[fx.Node]:
    """Nodes on the way from parameters to the weights of the sites: they go with the sites."""
    found: set[fx.Node] = set()
    pending = [one for node in nodes for one in node.all_input_nodes]
    while pending:
        node = pending.pop()
        if node not in found and node.users.keys() <= nodes | found and node.op in ("call_function", "call_method"):
            found.add(node)
            pending += node.all_input_nodes
    return found


def _owners(gm: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for parent in gm.modules():
        for name, child in parent._modules.items():
            if child is not None:
                owners.setdefault(id(child), []).append((parent, name))
    return owners


def _replace(owners: dict[int, list[tuple[nn.Module, str]]], old: nn.Module, new: nn.Module) -> None:
    for parent, name in owners.get(id(old), []):
        parent._modules[name] = new


def _place(gm: nn.Module, path: str, module: nn.Module) -> None:
    parent: nn.Module = gm
    *atoms, leaf = path.split(".")
    for atom in atoms:
        child = parent._modules.get(atom)
        if child is None:
            child = parent._modules[atom] = nn.Module()
        parent = child
    parent._modules[leaf] = module


def _drop_orphans(gm: fx.GraphModule, names: set[str]) -> None:
    """Remove parameters that only the replaced layers read."""
    read = {str(node.target) for node in gm.graph.nodes if node.op == "get_attr"}
    called = [str(node.target) for node in gm.graph.nodes if node.op == "call_module"]
    for name in names - read:
        path, _, leaf = name.rpartition(".")
        owner = _module(gm, path)
        if owner is None or any(path == one or path.startswith(f"{one}.") for one in called):
            continue
        owner._parameters.pop(leaf, None)
        owner._buffers.pop(leaf, None)
