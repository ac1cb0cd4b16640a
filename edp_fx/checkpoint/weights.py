"""Tensors as the bytes of a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from edp_fx.errors import CheckpointError


def weights_to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The file of ``tensors``, from any device; those that share memory are written each on its own.

    Raises CheckpointError for one without values, or of a type or layout that such a file cannot hold.
    """
    from safetensors.torch import save as to_bytes

    ready: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise CheckpointError(f"cannot save {name!r}: it is on the meta device and has no values")
        try:
            here = tensor.cpu().contiguous()
            place = here.untyped_storage().data_ptr()
            ready[name] = here.clone() if place in seen else here
            seen.add(place)
            to_bytes({name: ready[name].flatten()[:0].clone()})
        except Exception as error:
            raise CheckpointError(
                f"cannot save {name!r}: a safetensors file holds no {tensor.dtype} tensor of layout {tensor.layout}"
            ) from error
    return to_bytes(ready)
