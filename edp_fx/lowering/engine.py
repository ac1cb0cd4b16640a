"""Running what was lowered, on torch tensors."""

from __future__ import annotations

from pathlib import Path

from edp_fx.errors import LoweringError
from edp_fx.lowering import sidecar
from edp_fx.lowering.targets import Engine, get_target


def load_engine(path: str | Path, *, cuda_graph: bool = False) -> Engine:
    """The engine or ONNX file at ``path``, ready to be called on tensors.

    An ``.onnx`` file, or another that its sidecar says is one, runs under onnxruntime on the CPU; an engine
    needs its sidecar and an NVIDIA GPU. Raises LoweringError where the file is missing, damaged, of another
    GPU, or there is no GPU.
    """
    path = Path(path)
    if path.suffix == ".onnx":
        try:
            data = path.read_bytes()
        except OSError as error:
            raise LoweringError(f"cannot read {path}: {error.strerror or error}") from error
        return get_target("onnx").load(data, where=str(path))
    facts, data = sidecar.read(path)
    return get_target(str(facts.get("target"))).load(data, where=str(path), cuda_graph=cuda_graph)
