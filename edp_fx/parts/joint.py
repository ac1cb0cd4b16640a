"""The parts of a model as one graph over the model's own modules, and each part's region of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx, nn

from edp_fx.errors import TraceError
from edp_fx.frontend import trace
from edp_fx.frontend.running import attribute, submodule
from edp_fx.parts.forward import PartForward
from edp_fx.parts.plan import PartCall, Plan
from edp_fx.parts.recording import Form

EDGES = "part_edges"
"""The module of identities that mark in the joint graph what goes into a part and comes out of it."""


class Replay(nn.Module):
    """A model whose forward is the calls of its parts alone, one after the other, and nothing between.

    Args:
        model: its submodules and tensors are this module's.
        plan: the calls.
    """

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        super().__init__()
        for table in ("_modules", "_parameters", "_buffers"):
            self.__dict__[table] = dict(model.__dict__[table])
        self.__dict__["_non_persistent_buffers_set"] = set(model._non_persistent_buffers_set)
        if EDGES in self._modules:
            raise TraceError(f"the model has a module {EDGES!r}: its parts are traced already, go on with those")
        marks = nn.Module()
        for call in plan.calls:
            for name in edges(call):
                marks._modules[name] = nn.Identity()
        self._modules[EDGES] = marks
        self._plan = (plan,)

    def _mark(self, name: str, value: Any) -> Any:
        return self.get_submodule(f"{EDGES}.{name}")(value)

    def forward(self, *inputs: Any) -> Any:
        """What is read outside, of all calls, and the parameters that are."""
        (plan,) = self._plan
        made: list[list[Any]] = []
        results: list[Any] = []
        for call in plan.calls:
            names = edges(call)
            given = [inputs[place] if maker < 0 else made[maker][place] for maker, place in call.sources]
            marked = [self._mark(name, value) for name, value in zip(names, given)]
            args, kwargs = call.given.filled(marked)
            form, values = Form.of(self.get_submodule(call.path)(*args, **kwargs))
            if form != call.gave:
                raise TraceError("its result has another form when it is traced")
            made.append([self._mark(name, value) for name, value in zip(names[len(given) :], values)])
            results += [value for value, read in zip(made[-1], call.read) if read]
        return (*results, *(attribute(self, name) for name in plan.parameters))


def edges(call: PartCall) -> list[str]:
    """Names of the marks of a call: of its input tensors, then of its output tensors."""
    base = f"{call.path.replace('.', '_')}_{call.turn}"
    outputs = range(len(call.read))
    return [f"{base}_in{place}" for place in range(len(call.sources))] + [f"{base}_out{place}" for place in outputs]


class JointGraph(fx.GraphModule):
    """A graph module over a whole model's modules, of which it calls those of the parts.

    Attributes:
        listener: called when the graph was compiled anew.
    """

    def recompile(self) -> Any:
        """As of every graph module; what regions of it run is made anew after it."""
        code = super().recompile()
        listener: Callable[[], None] | None = self.__dict__.get("listener")
        if listener is not None:
            listener()
        return code

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A graph module of its own, which nothing runs but its own calls."""
        listener = self.__dict__.pop("listener", None)
        for module in self.modules():
            if isinstance(forward := module.__dict__.get("forward"), PartForward):
                memo[id(forward)] = None
        try:
            return super().__deepcopy__(memo)
        finally:
            self.__dict__["listener"] = listener

    def delete_all_unused_submodules(self) -> None:
        """Those with weights, inside of the parts; all else is run by the model's own code."""
        targets = [str(node.target) for node in self.graph.nodes if node.op in ("call_module", "get_attr")]
        used = {target[:end] for target in targets for end in (*_dots(target), len(target))}
        inside = tuple(f"{name}." for name in self.__dict__.get("parts", ()))
        for name, module in list(self.named_modules()):
            held = any(name.startswith(f"{target}.") for target in targets)
            weights = any(True for _ in module.parameters()) or any(True for _ in module.buffers())
            if name.startswith(inside) and weights and name not in used and not held:
                self.delete_submodule(name)


def _dots(path: str) -> list[int]:
    return [place for place, letter in enumerate(path) if letter == "."]


def replayed(model: nn.Module, plan: Plan) -> fx.GraphModule:
    """The calls of a plan as one graph that shares tensors with ``model`` and nothing else; see :func:`trace_joint`."""
    return trace(Replay(model, plan), tuple(plan.inputs))


def trace_joint(model: nn.Module, plan: Plan) -> JointGraph:
    """The calls of a plan as one graph, whose modules, parameters and buffers are those of ``model`` itself.

    Raises:
        TraceError: some part cannot be traced.
    """
    traced = replayed(model, plan)
    _move_in(traced, model)
    return joined(model, traced, list(dict.fromkeys(call.path for call in plan.calls)))


def joined(model: nn.Module, gm: fx.GraphModule, parts: Sequence[str]) -> JointGraph:
    """The graph of ``gm`` over a model's own tables of modules, parameters and buffers, which have all it needs."""
    joint = JointGraph(nn.Module(), fx.Graph(tracer_cls=fx.Tracer), class_name=type(model).__name__)
    for table in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
        joint.__dict__[table] = model.__dict__[table]
    joint.graph = gm.graph
    joint.meta.update(gm.meta)
    joint._deepcopy_hooks = list(gm._deepcopy_hooks)
    joint.__dict__.update(training=model.training, parts=tuple(parts))
    return joint


def _move_in(traced: fx.GraphModule, model: nn.Module) -> None:
    """Bring what the tracer made (identities, switches, constants) into the model, at the same names."""
    for node in traced.graph.nodes:
        if node.op not in ("call_module", "get_attr"):
            continue
        path, _, leaf = str(node.target).rpartition(".")
        home = model
        for name in path.split(".") if path else ():
            if home._modules.get(name) is None:
                home._modules[name] = nn.Module()
            home = home._modules[name]  # type: ignore[assignment]
        if node.op == "call_module":
            layer, mine = submodule(traced, str(node.target)), home._modules.get(leaf)
            if mine is None:
                home._modules[leaf] = layer
            else:  # its hooks may be nodes of the graph now
                mine._forward_hooks, mine._forward_pre_hooks = layer._forward_hooks, layer._forward_pre_hooks
        elif leaf not in home._parameters and leaf not in home._buffers:
            value = attribute(traced, str(node.target))
            home.__dict__.pop(leaf, None)
            home.register_buffer(leaf, value, persistent=False)


def region(gm: fx.GraphModule, call: PartCall) -> fx.Graph:
    """What one call of a part computes, as a graph from its input tensors to the tuple of its output tensors.

    Targets stay relative to ``gm``. It is all that lies between the call's marks, and what it is made from.
    """
    marks = {f"{EDGES}.{name}": place for place, name in enumerate(edges(call))}
    first = len(call.sources)
    nodes = list(gm.graph.nodes)
    found = {marks[node.target]: node for node in nodes if node.op == "call_module" and node.target in marks}
    place = {node: index for index, node in enumerate(nodes)}
    enters = {found[index] for index in range(first)}
    exits = [found[index] for index in range(first, len(marks))]
    span = range(max(place[node] for node in enters), min(place[node] for node in exits))
    wanted = {node for node in nodes[span.start + 1 : span.stop] if node.op != "placeholder"}
    pending = [*wanted, *exits]
    while pending:
        for one in pending.pop().all_input_nodes:
            if one not in wanted and one not in enters:
                wanted.add(one)
                pending.append(one)
    graph = fx.Graph()
    copies = {found[index]: graph.placeholder(f"x{index}") for index in range(first)}
    for node in nodes:
        if node in wanted:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[mark.args[0]] for mark in exits))
    return graph
