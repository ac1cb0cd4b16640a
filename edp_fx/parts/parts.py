"""``trace_parts``: the parts of a model that can be traced, as one graph that is run inside the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from edp_fx.errors import CheckpointError, ModelError, TraceError, typed_line
from edp_fx.inputs import COMPUTE_LAYERS, device_of
from edp_fx.parts.choice import check_asked, choose
from edp_fx.parts.forward import PartForward
from edp_fx.parts.joint import EDGES, joined, region, trace_joint
from edp_fx.parts.plan import Plan, make_plan
from edp_fx.parts.recording import Recording, record
from edp_fx.refusal import Refusal
from edp_fx.validation.compare import relative
from edp_fx.validation.samples import outputs, whole_float32

_ROUNDING = 1e-3


class Parts:
    """The traced parts of a model.

    Attributes:
        model: runs its parts by ``graph`` from now on, in train and in eval mode.
        graph: the parts as one graph, over the model's own modules, with its parameters' names: for
            :func:`edp_fx.insert`, :func:`edp_fx.analyze`, :class:`edp_fx.Compressor`, :func:`edp_fx.measure`,
            :func:`edp_fx.save`. What is done to it is done to the model.
        inputs: example inputs of ``graph``.
        names: of the parts, in the order of their calls.
        plan: their calls, and who reads what.
        refused: modules that are no parts, and what was not run, each with the reason. What is in them stays as it is.
    """

    def __init__(self, model: nn.Module, plan: Plan, names: Sequence[str], refused: list[Refusal]) -> None:
        self.model, self.names, self.refused = model, tuple(names), refused
        self.inputs: tuple[Tensor, ...] = tuple(plan.inputs)
        self.plan = plan
        self._forwards = {
            name: PartForward(name, model, {n: one for n, one in enumerate(plan.calls) if one.path == name})
            for name in self.names
        }
        self.graph: fx.GraphModule = trace_joint(model, plan)
        self._listen()

    def _listen(self) -> None:
        self.graph.__dict__["listener"] = self._renew
        self._renew()

    def _renew(self) -> None:
        """Bring what the parts run after the graph."""
        called = {str(node.target) for node in self.graph.graph.nodes if node.op == "call_module"}
        for name, forward in self._forwards.items():
            module = self.model.get_submodule(name)
            if name in called:  # a layer, which runs itself
                module.__dict__.pop("forward", None)
                continue
            forward.renew(lambda number: region(self.graph, self.plan.calls[number]))
            module.__dict__["forward"] = forward

    def put(self, graph: fx.GraphModule) -> None:
        """Let the model run a saved graph of the same parts, with all the weights that were saved.

        Args:
            graph: what :func:`edp_fx.load` gives for a saved ``graph`` of the same model with the same parts.

        Raises:
            CheckpointError: it is of other parts, or what the model's own code reads has other sizes. The model is as
                it was.
        """
        wanted, found = (_marks(one) for one in (self.graph, graph))
        if wanted != found:
            other = sorted(wanted ^ found, key=lambda one: (one in wanted, one))[0].removeprefix(f"{EDGES}.")
            raise CheckpointError(
                f"the saved graph is of other parts than {', '.join(self.names)}: {other} is in one of the two only; "
                "trace the parts of the same model, called in the same way"
            )
        home = device_of(self.model)
        loaded = graph.to(home) if home is not None else graph
        sizes = [[tuple(one.shape) for one in outputs(network, self.inputs)] for network in (self.graph, loaded)]
        if sizes[0] != sizes[1]:
            mine, its = next(pair for pair in zip(*sizes) if pair[0] != pair[1])
            raise CheckpointError(
                f"the saved graph gives a tensor of {its} where the model's own code reads one of {mine}: make the "
                "model as it was when it was saved (number of classes, for instance)"
            )
        training = {name: module.training for name, module in self.model.named_modules()}
        self.take_out()
        called = {
            str(node.target) for one in (self.graph, loaded) for node in one.graph.nodes if node.op == "call_module"
        }
        _take_over(self.model, loaded, called, "")
        for name, module in self.model.named_modules():
            module.training = training.get(name, training[""])
        self.graph = joined(self.model, loaded, self.names)
        self._listen()

    def take_out(self) -> None:
        """Let the model run its parts by their own code again, which fits as long as nothing was removed."""
        self.graph.__dict__.pop("listener", None)
        for name in self.names:
            self.model.get_submodule(name).__dict__.pop("forward", None)

    def __str__(self) -> str:
        """A line a part: how many layers, and who reads it; then what was refused."""
        lines = []
        for name in self.names:
            layers = sum(isinstance(one, COMPUTE_LAYERS) for one in self.model.get_submodule(name).modules())
            readers: dict[str, None] = {}
            for number, call in enumerate(self.plan.calls):
                for place, read in enumerate(call.read if call.path == name else ()):
                    readers.update(dict.fromkeys(self.plan.read_by(number, place)))
                    readers.update({"the model's own code": None} if read else {})
            lines.append(f"{name}: {layers} layers, read by {', '.join(readers)}")
        return "\n".join([*lines, *(f"not traced: {one.node}: {one.reason}" for one in self.refused)])


def trace_parts(
    model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None = None, *, parts: Sequence[str] | None = None
) -> Parts:
    """Trace what can be traced of a model whose own Python code cannot be a graph, such as a detector's.

    The model is run on its own arguments, in train and in eval mode. The outermost submodules that take and give
    tensors (in any containers) and can be traced are its parts. Where a part reads what another gave, the two are tied
    in one graph: channels of a pyramid go from the backbone and from all heads together. What the model's own code
    reads, keeps its channels. The model is changed in place: its parts run the graph, with the same weights.

    Args:
        model: any module.
        args: positional arguments of its forward, of any kind, ``(images, targets)`` for instance: those of training,
            where eval mode takes them, too.
        kwargs: keyword arguments.
        parts: names of the submodules to take, instead of all outermost ones.

    Raises:
        TraceError: the model does not run on the arguments, or has no part that can be traced; or one of ``parts`` is
            none (says why).
        ModelError: ``model`` is no module.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"a model is a torch.nn.Module, not {type(model).__name__}")
    if any(isinstance(one.__dict__.get("forward"), PartForward) for one in model.modules()):
        raise TraceError("the parts of this model are traced already: go on with those, or take a model made anew")
    args = args if isinstance(args, tuple) else (args,)
    recordings, refused = _recorded(model, args, dict(kwargs or {}))
    if parts is None:
        names, found = choose(model, list(recordings.values()))
        refused += found
    else:
        names = list(dict.fromkeys(parts))
        check_asked(model, list(recordings.values()), names)
    if not any(True for name in names for _ in model.get_submodule(name).parameters()):
        said = "; ".join(f"{one.node}: {one.reason}" for one in refused[:3])
        raise TraceError(f"no part of {type(model).__name__} can be traced{f' ({said})' if said else ''}")
    made = Parts(model, make_plan(model, list(recordings.values()), names), names, refused)
    if "eval" in recordings:
        try:
            _check(made, recordings["eval"])
        except TraceError:
            made.take_out()
            raise
    for call in made.plan.calls:
        call.recorded = None
    return made


def _recorded(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Recording], list[Refusal]]:
    """The runs in both modes; a mode in which the model does not run is refused."""
    found: dict[str, Recording] = {}
    refused = []
    errors: list[Exception] = []
    for mode in ("eval", "train"):
        try:
            with whole_float32():  # as where the graph is compared with it
                found[mode] = record(model, args, kwargs, train=mode == "train")
        except Exception as error:
            errors.append(error)
            refused.append(Refusal(f"{mode} mode", f"the model does not run on the arguments: {typed_line(error)}"))
    if not found:
        raise TraceError(
            f"{type(model).__name__} does not run on the arguments: {typed_line(errors[-1])}; give those of its forward"
        ) from errors[-1]
    return found, refused


def _check(parts: Parts, evaluated: Recording) -> None:
    """Raise TraceError where the graph does not compute what the parts computed when the model ran in eval mode."""
    wanted: list[tuple[Tensor, bool]] = []
    seen = {id(one) for one in evaluated.calls}
    for call in parts.plan.calls:
        assert call.recorded is not None
        compared = id(call.recorded) in seen and call.recorded.untouched  # nothing wrote into its tensors since
        wanted += [(one, compared) for one, read in zip(call.recorded.outputs, call.read) if read]
    wanted = [(one, compared) for one, compared in wanted if one.is_floating_point()]
    given = outputs(parts.graph, parts.inputs)
    pairs = [(one.float(), other) for (one, compared), other in zip(wanted, given) if compared]
    off = relative([one for one, _ in pairs], [other for _, other in pairs])
    if off > _ROUNDING:
        raise TraceError(f"the traced parts compute something else than the model, off by {off:.1e}, relative")


def _marks(graph: fx.GraphModule) -> set[str]:
    return {
        str(node.target)
        for node in graph.graph.nodes
        if node.op == "call_module" and str(node.target).startswith(f"{EDGES}.")
    }


def _take_over(mine: nn.Module, other: nn.Module, called: set[str], path: str) -> None:
    """Bring modules that a graph calls, and tensors, from ``other`` into ``mine``, whose containers stay."""
    for table in ("_parameters", "_buffers"):
        for name, value in other.__dict__[table].items():
            mine.__dict__[table][name] = value
    mine._non_persistent_buffers_set |= other._non_persistent_buffers_set
    for name, child in other._modules.items():
        here = f"{path}{name}"
        own = mine._modules.get(name)
        if own is None or child is None or here in called:
            mine._modules[name] = child
        else:
            _take_over(own, child, called, f"{here}.")
