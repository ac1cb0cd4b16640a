"""Which calls of parts the joint graph has, and how they are tied: by the identity of tensors in recorded runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from edp_fx.parts.recording import Call, Form, Recording

Source = tuple[int, int]  # (call, output); (-1, input) for what comes from outside


@dataclass
class PartCall:
    """A call of a part in the joint graph.

    Attributes:
        path: of the part.
        turn: which call of this part it is, from 0 on.
        given, gave: form of its arguments and of its result.
        sources: where its input tensors come from.
        shapes: of its input tensors in the recorded run.
        read: which of its output tensors something else than a part reads.
        recorded: the recorded call; None once the graph was compared with it.
    """

    path: str
    turn: int
    given: Form
    gave: Form
    sources: list[Source]
    shapes: list[tuple[int, ...]]
    read: list[bool]
    recorded: Call | None


@dataclass
class Plan:
    """The joint graph before it is traced.

    Attributes:
        calls: in order.
        inputs: the tensors that come from outside.
        parameters: names of the parts' parameters that something outside of them reads.
    """

    calls: list[PartCall] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)

    def read_by(self, call: int, output: int) -> list[str]:
        """The parts that read an output."""
        return list(dict.fromkeys(one.path for one in self.calls if (call, output) in one.sources))


def outermost(recording: Recording, paths: Collection[str]) -> list[Call]:
    """The calls of the modules at ``paths`` that were not made inside of one of these, and have data."""
    found = []
    for one in recording.calls:
        if one.path in paths and not any(outer.path in paths for outer in recording.around(one.parent)):
            found.append(one)
    return [one for one in found if one.gave is not None and all(tensor.numel() for tensor in one.inputs)]


def make_plan(model: nn.Module, recordings: Sequence[Recording], paths: Collection[str]) -> Plan:
    """What the parts at ``paths`` give each other in all of the recorded runs together.

    A call that a later run makes as an earlier one did is there once; an output is read outside where it is in any.
    """
    plan = Plan()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    under = tuple(f"{path}." for path in paths)
    for recording in recordings:
        makers: dict[int, Source] = {}  # of a tensor, by its id
        outside: dict[int, int] = {}  # the joint graph's inputs
        taken: set[int] = set()
        mine: dict[int, list[Source]] = {}  # which outputs of the plan a tensor of this run is
        for call in outermost(recording, paths):
            sources = [makers.get(id(tensor)) for tensor in call.inputs]
            number = _known(plan, call, sources, taken)
            if number is None:
                number = len(plan.calls)
                plan.calls.append(_made(plan, call, sources, outside))
            taken.add(number)
            for place, tensor in enumerate(call.outputs):
                makers[id(tensor)] = (number, place)
                mine.setdefault(id(tensor), []).append((number, place))
        read = set(recording.returned)
        for tensor_id, at in recording.reads:
            if not any(outer.path in paths for outer in recording.around(at)):
                read.add(tensor_id)
        for tensor_id in read:
            for number, place in mine.get(tensor_id, ()):
                plan.calls[number].read[place] = True
            name = names.get(tensor_id, "")
            if name.startswith(under) and name not in plan.parameters:
                plan.parameters.append(name)
    for number, one in enumerate(plan.calls):
        for place in range(len(one.read)):
            if not plan.read_by(number, place):
                one.read[place] = True  # who knows by whom
    return plan


def _known(plan: Plan, call: Call, sources: Sequence[Source | None], taken: Collection[int]) -> int | None:
    """A call of the plan that another run made just so."""
    for number, one in enumerate(plan.calls):
        if number in taken or (one.path, one.given, one.gave) != (call.path, call.given, call.gave):
            continue
        if [None if maker[0] < 0 else maker for maker in one.sources] == list(sources):
            return number
    return None


def _made(plan: Plan, call: Call, sources: Sequence[Source | None], outside: dict[int, int]) -> PartCall:
    assert call.gave is not None
    found: list[Source] = []
    for tensor, source in zip(call.inputs, sources):
        if source is None:
            if id(tensor) not in outside:
                outside[id(tensor)] = len(plan.inputs)
                plan.inputs.append(tensor.detach())
            source = (-1, outside[id(tensor)])
        found.append(source)
    shapes = [tuple(tensor.shape) for tensor in call.inputs]
    turn = sum(one.path == call.path for one in plan.calls)
    return PartCall(call.path, turn, call.given, call.gave, found, shapes, [False] * len(call.outputs), call)
