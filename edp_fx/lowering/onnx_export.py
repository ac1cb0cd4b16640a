"""The one ONNX file every target starts from: torch.export, then torch.onnx (opset 20), weights inside."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edp_fx.errors import LoweringError
from edp_fx.extras import need
from edp_fx.lowering.profile import Profile
from edp_fx.lowering.program import export_program, quiet, reason

# Opset 23 adds an Attention operator which TensorRT-RTX 1.7 parses and then cannot build in float32.
OPSET = 20

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


def export_onnx(model: nn.Module, inputs: tuple[Tensor, ...], profile: Profile) -> Exported:
    """Export ``model`` (in eval mode, on the CPU, already in its final precision) for ``profile``.

    Raises LoweringError saying what torch could not export: a size that the model fixes although it should
    vary, an operator without an ONNX form, a file above 2 GiB.
    """
    need("lower", "writing ONNX", "onnx", "onnxscript")
    program = export_program(model, inputs, profile)
    names = _input_names(model, len(inputs))
    with torch.no_grad(), quiet():
        outputs = _count_outputs(program.exported)
        output_names = ["output"] if outputs == 1 else [f"output_{i}" for i in range(outputs)]
        try:
            exported: Any = torch.onnx.export(
                program.exported,
                dynamo=True,
                opset_version=OPSET,
                input_names=names,
                output_names=output_names,
                dynamic_shapes=program.dynamic_shapes,  # names the axes
                external_data=False,
                verbose=False,
            )
        except Exception as error:
            raise LoweringError(f"torch.onnx refused the model: {reason(error, program.dims)}") from error
    _restore_constants(exported.model)
    _restore_types(exported.model)
    locations = _locations(exported.model)
    proto = exported.model_proto
    if proto.ByteSize() > _TWO_GIB:
        raise LoweringError(
            f"the ONNX file would have {proto.ByteSize() / 2**30:.1f} GiB; one file holds less than 2 GiB"
        )
    data = proto.SerializeToString()
    return Exported(data, exported.exported_program, program.shown, names, output_names, profile, locations)


def _input_names(model: nn.Module, count: int) -> list[str]:
    try:
        known = [
            p.name for p in inspect.signature(model.forward).parameters.values() if p.kind <= p.POSITIONAL_OR_KEYWORD
        ]
    except (TypeError, ValueError):
        known = []
    return known[:count] if len(known) >= count else [f"input_{i}" for i in range(count)]


def _count_outputs(program: Any) -> int:
    kinds = [spec for spec in program.graph_signature.output_specs if spec.kind.name == "USER_OUTPUT"]
    if not kinds or any(type(spec.arg).__name__ != "TensorArgument" for spec in kinds):
        raise LoweringError("the model must return tensors (or lists, tuples, dicts of them)")
    return len(kinds)


def _restore_constants(model: Any) -> None:
    """List again the constants that the exporter's fusion of successive clips names alike: it lists one of them."""
    for node in model.graph:
        for value in node.inputs:
            if value is not None and value.const_value is not None and value.producer() is None:
                model.graph.initializers.setdefault(value.name, value)


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
