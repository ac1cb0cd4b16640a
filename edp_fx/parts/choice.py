"""Which submodules can be traced: the outermost ones, or those that are asked for."""

from __future__ import annotations

from collections.abc import Sequence

from torch import jit, nn

from edp_fx.errors import EdpError, TraceError, one_line
from edp_fx.parts.joint import replayed
from edp_fx.parts.plan import make_plan
from edp_fx.parts.recording import Call, Recording
from edp_fx.refusal import Refusal


def choose(model: nn.Module, recordings: Sequence[Recording]) -> tuple[list[str], list[Refusal]]:
    """Paths of the outermost submodules that can be traced, in the order of their calls, and what could not be.

    A module without parameters is a part only where it reads another.
    """
    chosen: list[str] = []
    refused: list[Refusal] = []
    seen: set[str] = set()

    def visit(path: str) -> None:
        if path in seen:
            return
        seen.add(path)
        reason = why_not(model, recordings, path)
        if reason is None:
            chosen.append(path)
            return
        if any(True for _ in model.get_submodule(path).parameters()):
            refused.append(Refusal(path, reason))
        for inner in _called_by(recordings, path):
            visit(inner)

    for path in _called_by(recordings, ""):
        visit(path)
    return _useful(model, recordings, chosen), refused


def check_asked(model: nn.Module, recordings: Sequence[Recording], paths: Sequence[str]) -> None:
    """Raise TraceError naming one of ``paths`` that is no module, is never called or cannot be traced."""
    known = dict(model.named_modules())
    for path in paths:
        if path not in known or not path:
            raise TraceError(f"parts: the model has no module {path!r}")
        reason = why_not(model, recordings, path)
        if reason is not None:
            raise TraceError(f"parts: {path} cannot be traced: {reason}")


def why_not(model: nn.Module, recordings: Sequence[Recording], path: str) -> str | None:
    """Why a module can be no part; None where it can."""
    module = model.get_submodule(path)
    calls = [one for recording in recordings for one in recording.calls if one.path == path]
    if not calls:
        return "it is never called"
    if isinstance(module, jit.ScriptModule):
        return "it is scripted"
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has a forward hook"
    for one in calls:
        reason = _unlike_a_graph(one)
        if reason is not None:
            return reason
    if not any(all(tensor.numel() for tensor in one.inputs) for one in calls):
        return "it is given nothing but empty tensors"
    try:
        traced = replayed(_alone(module, path), make_plan(model, recordings, [path]))
    except EdpError as error:
        return (
            one_line(error).removeprefix("cannot trace Replay: ").removeprefix("TraceError: ").partition(". Check")[0]
        )
    return next((one.reason for one in traced.meta["edp_fx.trace"].opaque if one.node == path), None)


def _alone(module: nn.Module, path: str) -> nn.Module:
    """A model that has nothing but the module at this path, which is quicker to trace."""
    root = nn.Module()
    owner, *atoms, leaf = root, *path.split(".")
    for atom in atoms:
        owner._modules[atom] = nn.Module()
        owner = owner.get_submodule(atom)
    owner._modules[leaf] = module
    return root


def _unlike_a_graph(call: Call) -> str | None:
    """Why the arguments or the result of a call are not those of a graph."""
    if call.gave is None:
        return "it raises an exception"
    given, gave = call.given.foreign(), call.gave.foreign()
    if given is not None:
        return f"among its arguments is a value of type {given}"
    if gave is not None:
        return f"its result has a value of type {gave}"
    if not call.inputs:
        return "it takes no tensor"
    return None if call.outputs else "it gives back no tensor"


def _called_by(recordings: Sequence[Recording], path: str) -> list[str]:
    """The modules that are called in the forward of the one at ``path``, in order."""
    found: dict[str, None] = {}
    for recording in recordings:
        for one in recording.calls:
            if (recording.calls[one.parent].path if one.parent >= 0 else "") == path:
                found[one.path] = None
    return list(found)


def _useful(model: nn.Module, recordings: Sequence[Recording], chosen: list[str]) -> list[str]:
    """Without modules that have no parameters and read no part."""
    while True:
        plan = make_plan(model, recordings, chosen)
        reading = {one.path for one in plan.calls if any(maker >= 0 for maker, _ in one.sources)}
        kept = [p for p in chosen if p in reading or any(True for _ in model.get_submodule(p).parameters())]
        if kept == chosen:
            return chosen
        chosen = kept
