"""The one ONNX file every target starts from: torch.export, then torch.onnx (opset 20), weights inside."""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edp_fx.errors import LoweringError
from edp_fx.lowering.profile import Profile, Range

# Opset 23 adds an Attention operator which TensorRT-RTX 1.7 parses and then cannot build in float32.
OPSET = 20

_IMAGE_STEP = 32

_TWO_GIB = 2**31 - 1


@dataclass
class Exported:
    """An exported network.

    ``data`` is the ONNX file; ``program`` the decomposed torch program whose node names are the ONNX values'
    names; ``inputs`` the example inputs, in the file's types; ``locations`` says for a value in which module
    it is computed.
    """

    data: bytes
    program: Any
    inputs: tuple[Tensor, ...]
    input_names: list[str]
    output_names: list[str]
    profile: Profile
    locations: dict[str, str]


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


def export_onnx(model: nn.Module, inputs: tuple[Tensor, ...], profile: Profile) -> Exported:
    """Export ``model`` (in eval mode, on the CPU, already in its final precision) for ``profile``.

    Raises LoweringError saying what torch could not export: a size that the model fixes although it should
    vary, an operator without an ONNX form, a file above 2 GiB.
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
    names = _input_names(model, len(inputs))
    with torch.no_grad(), quiet():
        try:
            shaped = _shaped(model, shapes)
            program = torch.export.export(model, shown, dynamic_shapes=shaped)
        except Exception as error:
            raise LoweringError(f"torch.export refused the model: {_reason(error, dims)}") from error
        outputs = _count_outputs(program)
        output_names = ["output"] if outputs == 1 else [f"output_{i}" for i in range(outputs)]
        try:
            exported: Any = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=names,
                output_names=output_names,
                dynamic_shapes=shaped,  # names the axes
                external_data=False,
                verbose=False,
            )
        except Exception as error:
            raise LoweringError(f"torch.onnx refused the model: {_reason(error, dims)}") from error
    _restore_types(exported.model)
    locations = _locations(exported.model)
    proto = exported.model_proto
    if proto.ByteSize() > _TWO_GIB:
        raise LoweringError(
            f"the ONNX file would have {proto.ByteSize() / 2**30:.1f} GiB; one file holds less than 2 GiB"
        )
    data = proto.SerializeToString()
    return Exported(data, exported.exported_program, shown, names, output_names, profile, locations)


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


def _input_names(model: nn.Module, count: int) -> list[str]:
    try:
        known = [
            p.name for p in inspect.signature(model.forward).parameters.values() if p.kind <= p.POSITIONAL_OR_KEYWORD
        ]
    except (TypeError, ValueError):
        known = []
    return known[:count] if len(known) >= count else [f"input_{i}" for i in range(count)]


def _shaped(model: nn.Module, shapes: list[Any]) -> Any:
    """dynamic_shapes in the form of forward's arguments: a ``*args`` takes its share as a tuple."""
    parameters = [p.kind for p in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in parameters:
        at = parameters.index(inspect.Parameter.VAR_POSITIONAL)
        return (*shapes[:at], tuple(shapes[at:]))
    return tuple(shapes)


def _count_outputs(program: Any) -> int:
    kinds = [spec for spec in program.graph_signature.output_specs if spec.kind.name == "USER_OUTPUT"]
    if not kinds or any(type(spec.arg).__name__ != "TensorArgument" for spec in kinds):
        raise LoweringError("the model must return tensors (or lists, tuples, dicts of them)")
    return len(kinds)


def _reason(error: BaseException, dims: dict[str, Any]) -> str:
    """The innermost cause in one line; sizes the model fixes are said in the words of the options."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines)
    for name in dims:
        if "onstraint" in type(error).__name__ + text and name in text:
            option = "--batch N" if name == "batch" else "no --image"
            return f"the model fixes the {name} size, so it cannot vary: use {option}. ({text[:300]})"
    return f"{type(error).__name__}: {text[:400] or 'no message'}"


def _restore_types(model: Any) -> None:
    """Give back their half type to weights that the exporter's batch-norm fusion left in float32.

    The fusion computes in numpy, which has no bfloat16; a strongly typed runtime refuses the mixed node.
    """
    import onnx_ir as ir

    halves = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    for node in model.graph:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or not node.inputs[0]:
            continue
        wanted = node.inputs[0].dtype
        for value in node.inputs[1:]:
            weight = value.const_value if value is not None else None
            if wanted in halves and weight is not None and weight.dtype == ir.DataType.FLOAT:
                array = weight.numpy().astype(wanted.numpy())
                value.const_value = ir.Tensor(array, dtype=wanted, name=value.name)
                value.dtype = wanted


def _locations(model: Any) -> dict[str, str]:
    """Value name -> the innermost module that computes it, from the exporter's name scopes."""
    found = {}
    for node in model.graph:
        scopes = [
            part.strip(" '\"")
            for part in node.metadata_props.get("pkg.torch.onnx.name_scopes", "").strip("[]").split(",")
        ]
        modules = [scope for scope in scopes[:-1] if scope]
        for value in node.outputs:
            found[value.name] = modules[-1] if modules else ""
    return found
