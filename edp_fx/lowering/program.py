"""torch.export of a network whose batch, and image size if asked, stay variable."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from edp_fx.errors import LoweringError
from edp_fx.leaves import leaves
from edp_fx.lowering.attention import FourAxes
from edp_fx.lowering.decompositions import decompose
from edp_fx.lowering.profile import Profile, Range

_IMAGE_STEP = 32


@dataclass
class Program:
    """An exported program, the inputs it was shown, and its varying sizes in the form torch takes."""

    exported: torch.export.ExportedProgram
    shown: tuple[Tensor, ...]
    dynamic_shapes: Any
    dims: dict[str, Any]


def export_program(model: nn.Module, inputs: tuple[Tensor, ...], profile: Profile) -> Program:
    """torch.export of ``model`` (in eval mode, on the CPU), its sizes varying as ``profile`` says.

    Raises LoweringError saying what torch could not export: a size that the model fixes although it should vary.
    """
    axes = profile.axes(inputs)
    dims: dict[str, Any] = {}
    shapes = []
    for one in axes:
        spec = {}
        for axis, (name, size) in one.items():
            if not size.static:
                spec[axis] = dims.setdefault(name, _dim(name, size))
        shapes.append(spec or None)
    # torch.export specialises a size it sees as 0 or 1, so what varies is shown as something else.
    batch = profile.batch.min if profile.batch.static else max(2, profile.batch.min)
    image = profile.image.opt if profile.image is not None else None
    shown = profile.sample(inputs, batch, image, seed=0)
    with torch.no_grad(), quiet():
        try:
            flat = _flat(model, shown)
            shaped = _shaped(flat, shapes)
            with FourAxes(), contextlib.redirect_stderr(io.StringIO()):  # where it fails, it prints its whole graph
                exported = decompose(torch.export.export(flat, shown, dynamic_shapes=shaped))
        except Exception as error:
            raise LoweringError(f"torch.export refused the model: {reason(error, dims)}{_way(error)}") from error
    return Program(exported, shown, shaped, dims)


class _Flat(nn.Module):
    """A network whose outputs are in containers that torch.export does not know: it gives the tensors alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Any, ...]:
        return tuple(one for one in leaves(self.model(*inputs)) if one is not None)


def _flat(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """``model`` itself where it gives tensors in lists, tuples and dicts."""
    outputs = model(*inputs)
    return model if all(isinstance(one, Tensor) for one in tree_leaves(outputs)) else _Flat(model)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters' and quantisers' chatter; their errors still come as exceptions."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _dim(name: str, size: Range) -> Any:
    """A named varying size. Image sizes in steps of 32, where the range is: networks that halve the image
    five times and add what was halved in two ways hold for no other step.
    """
    step = _IMAGE_STEP if name != "batch" else 1
    if size.min % step or size.opt % step or size.max % step:
        step = 1
    if step == 1:
        return torch.export.Dim(name, min=size.min, max=size.max)
    return step * torch.export.Dim(f"_{name}", min=size.min // step, max=size.max // step)


def _shaped(model: nn.Module, shapes: list[Any]) -> Any:
    """dynamic_shapes in the form of forward's arguments: a ``*args`` takes its share as a tuple."""
    parameters = [p.kind for p in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in parameters:
        at = parameters.index(inspect.Parameter.VAR_POSITIONAL)
        if at < len(shapes):
            return (*shapes[:at], tuple(shapes[at:]))
    return tuple(shapes)


def _way(error: BaseException) -> str:
    """What to do about a model whose code depends on values, as detectors' does."""
    while error.__cause__ is not None:
        error = error.__cause__
    if "DataDependent" not in type(error).__name__ + str(error):
        return ""
    return ". What is computed depends on values: edp_fx.trace_parts(model, args).graph is the part that can be lowered"


def reason(error: BaseException, dims: dict[str, Any]) -> str:
    """The innermost cause in one line, with the node where it names one; sizes the model fixes are said in the words
    of the options.
    """
    at = ""
    while error.__cause__ is not None:
        found = re.search(r"node %(\w+) ", str(error))
        at = f"node {found[1]!r}: " if found else at
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines)
    for name in dims:
        if "onstraint" in type(error).__name__ + text and name in text:
            option = "--batch N" if name == "batch" else "no --image"
            return f"the model fixes the {name} size, so it cannot vary: use {option}. ({text[:300]})"
    if isinstance(error, TypeError) and "attribute type" in text and "SymbolicTensor" in text:
        what = "ONNX wants a constant where the model has a size that varies (a convolution's groups, say)"
        return f"{at}{what}: use --batch N"
    return f"{at}{type(error).__name__}: {text[:200] or 'no message'}"
