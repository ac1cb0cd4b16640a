"""Operators that a runtime lacks, in terms of those that all have."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import ExportedProgram


def decompose(program: ExportedProgram) -> ExportedProgram:
    """``program`` without operators that have a row in the table; itself where it has none."""
    if any(node.target in _TABLE for node in program.graph.nodes):
        return program.run_decompositions(_TABLE)
    return program


def fold(
    columns: Tensor,
    output_size: list[int],
    kernel_size: list[int],
    dilation: list[int],
    padding: list[int],
    stride: list[int],
) -> Tensor:
    """``F.fold``, as a transposed convolution which puts each row of a patch at its own place of the kernel.

    TensorRT's parser takes no Col2Im.
    """
    *lead, rows, _ = columns.shape
    patch = kernel_size[0] * kernel_size[1]
    sizes = list(zip(output_size, kernel_size, dilation, padding, stride))
    # Positions of the kernel along each axis, less one; the rest is what the last one leaves uncovered.
    steps = [divmod(size + 2 * pad - dil * (side - 1) - 1, step) for size, side, dil, pad, step in sizes]
    kernel = torch.eye(patch, dtype=columns.dtype, device=columns.device).reshape(patch, 1, *kernel_size)
    image = F.conv_transpose2d(
        columns.reshape(-1, patch, *(count + 1 for count, _ in steps)),
        kernel,
        stride=stride,
        padding=padding,
        output_padding=[rest for _, rest in steps],
        dilation=dilation,
    )
    return image.reshape(*lead, rows // patch, *output_size)


_TABLE = {torch.ops.aten.col2im.default: fold}
