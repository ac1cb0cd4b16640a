"""One layer as an ONNX file, written directly: an export through torch takes a second a layer."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from edp_fx.geometry import Geometry, plain_kind
from edp_fx.lowering.onnx_export import OPSET


def layer_model(module: nn.Module, example: Tensor) -> bytes | None:
    """The float32 ONNX file of a plain convolution or linear layer, None for what is none.

    Padding other than zeros is written as zeros: the file is for timing.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    if plain_kind(module) is None:
        return None
    geometry = Geometry.of(module)
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    matrix = weight.detach().float().numpy()
    constants = [numpy_helper.from_array(np.ascontiguousarray(matrix if geometry.dims else matrix.T), "w")]
    if bias is not None:
        assert isinstance(bias, Tensor)
        constants.append(numpy_helper.from_array(bias.detach().float().numpy(), "b"))
    if geometry.dims:
        options: dict[str, object] = {
            "strides": list(geometry.stride),
            "dilations": list(geometry.dilation),
            "group": geometry.groups,
        }
        options["pads"] = _pads(geometry, tuple(weight.shape[2:]))
        if geometry.transposed:
            options["output_padding"] = list(geometry.output_padding)
        name = "ConvTranspose" if geometry.transposed else "Conv"
        nodes = [helper.make_node(name, ["x", "w", *(["b"] if bias is not None else [])], ["y"], **options)]
    else:
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y" if bias is None else "product"])]
        if bias is not None:
            nodes.append(helper.make_node("Add", ["product", "b"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(example.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = min(model.ir_version, 10)
    data: bytes = onnx.ModelProto.SerializeToString(model)
    return data


def _pads(geometry: Geometry, kernel: tuple[int, ...]) -> list[int]:
    """Zeros before each axis, then after each."""
    if not isinstance(geometry.padding, str):
        return [*geometry.padding, *geometry.padding]
    if geometry.padding == "valid":
        return [0] * (2 * geometry.dims)
    both = [dilation * (size - 1) for dilation, size in zip(geometry.dilation, kernel)]
    return [*(total // 2 for total in both), *(total - total // 2 for total in both)]
