"""int8 by onnxruntime's static quantiser: explicit quantise/dequantise nodes that TensorRT reads as they
are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edp_fx.errors import LoweringError, whole_line
from edp_fx.lowering.onnx_export import Exported
from edp_fx.lowering.program import quiet

# What a strongly typed TensorRT takes: signed, zero point 0, and the bias left in float32 (it refuses int32
# there).
_OPTIONS = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}


def quantize(exported: Exported, calibration_loader: Iterable[Any], *, batches: int = 16) -> bytes:
    """The exported file with Q/DQ nodes around its convolutions and matrix products; scales from the first
    ``batches`` of ``calibration_loader`` (tensors, or tuples that begin with the model's inputs, as a data
    loader gives).

    Raises LoweringError where the loader is empty or its batches do not fit the model.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory(prefix="edp-fx-") as folder:
        source, result = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(exported.data)
        reader = _Reader(exported, calibration_loader, batches)
        try:
            with quiet():
                quantize_static(
                    source,
                    result,
                    reader,
                    quant_format=QuantFormat.QDQ,
                    per_channel=True,
                    activation_type=QuantType.QInt8,
                    weight_type=QuantType.QInt8,
                    op_types_to_quantize=["Conv", "Gemm", "MatMul"],
                    extra_options=_OPTIONS,
                )
        except LoweringError:
            raise
        except Exception as error:
            raise LoweringError(f"onnxruntime's quantiser failed: {whole_line(error)}") from error
        return result.read_bytes()


class _Reader:
    """onnxruntime's CalibrationDataReader protocol over a torch data loader."""

    def __init__(self, exported: Exported, loader: Iterable[Any], batches: int) -> None:
        self._exported = exported
        self._feeds = self._read(iter(loader), batches)
        self._first: dict[str, np.ndarray] | None = next(self._feeds, None)
        if self._first is None:
            raise LoweringError("the calibration loader is empty: int8 needs at least one batch of the model's inputs")

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch by input name, None at the end."""
        feed, self._first = self._first, None
        return feed if feed is not None else next(self._feeds, None)

    def _read(self, loader: Iterator[Any], batches: int) -> Iterator[dict[str, np.ndarray]]:
        names, examples = self._exported.input_names, self._exported.inputs
        for _ in range(batches):
            batch = next(loader, None)
            if batch is None:
                return
            given = (batch,) if isinstance(batch, Tensor) else tuple(batch)
            feed = {}
            for name, value, example in zip(names, given, examples):
                tensor = torch.as_tensor(value).detach().cpu().to(example.dtype)
                if tensor.dim() != example.dim() or tensor.shape[1:] != example.shape[1:]:
                    raise LoweringError(
                        f"calibration batch for input {name!r} has shape {tuple(tensor.shape)}, "
                        f"the model takes (N, {', '.join(map(str, example.shape[1:]))})"
                    )
                feed[name] = tensor.numpy()
            if len(feed) < len(names):
                raise LoweringError(f"a calibration batch has {len(feed)} tensors, the model takes {len(names)}")
            yield feed
