"""Attention in the one form that ONNX's operators are written for: four axes."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class FourAxes(TorchFunctionMode):
    """Runs ``scaled_dot_product_attention`` over other than four axes (heads in the batch, windows) on four.

    The leading axes become one: [*, H, L, E] -> [N, H, L, E] and back. torch.onnx takes no other rank.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or len(args) < 3 or args[0].ndim in (2, 4):
            return func(*args, **kwargs)
        query, key, value, *rest = args
        lead = query.shape[:-3]

        def folded(x: Tensor) -> Tensor:
            return x.expand(*lead, *x.shape[-3:]).reshape(-1, *x.shape[-3:])

        given = dict(zip(("attn_mask", "dropout_p", "is_causal"), rest)) | kwargs
        mask = given.get("attn_mask")
        if mask is not None and mask.ndim > 3 and math.prod(mask.shape[:-3]) != 1:
            given["attn_mask"] = folded(mask)
        elif mask is not None and mask.ndim > 3:
            given["attn_mask"] = mask.reshape(1, *mask.shape[-3:])
        result = func(folded(query), folded(key), folded(value), **given)
        return result.reshape(*lead, *result.shape[-3:])
