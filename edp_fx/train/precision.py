"""Mixed precision in training: torch's autocast, and float32 for what a processor is slow at in bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from edp_fx.geometry import ARGUMENTS

_CONVOLUTIONS: tuple[Any, ...] = (F.conv1d, F.conv2d, F.conv3d)


@contextmanager
def mixed_precision(device: str, dtype: torch.dtype) -> Iterator[None]:
    """Within it a network computes in ``dtype`` what autocast has compute so; in float32 all as it is.

    On a processor depthwise convolutions that move by more than one, or see one number a channel, compute in float32:
    in bfloat16 they take 10 to 20 times as long, in the latter case 3 times (``benchmarks/depthwise.py``). MobileNets
    have such layers, and ResNets whose convolutions became a depthwise and a pointwise one. (A module that checkpoints
    its activations through such a layer has to be run backward within it, too.)
    """
    slow = device == "cpu" and dtype == torch.bfloat16
    with torch.autocast(device, dtype, enabled=dtype != torch.float32), _Float32() if slow else nullcontext():
        yield


class _Float32(TorchFunctionMode):
    """Those convolutions without autocast; what they give is bfloat16 again."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in _CONVOLUTIONS:
            given = {**dict(zip(ARGUMENTS["conv"], args)), **(kwargs or {})}
            if _slow(given):
                values = {name: one.float() if isinstance(one, Tensor) else one for name, one in given.items()}
                with torch.autocast("cpu", enabled=False):
                    return func(**values).bfloat16()
        return func(*args, **(kwargs or {}))


def _slow(given: dict[str, Any]) -> bool:
    source, stride = given["input"], given.get("stride", 1)
    if not isinstance(source, Tensor) or not torch.is_autocast_enabled("cpu"):
        return False
    if source.dtype not in (torch.float32, torch.bfloat16):  # as of autocast, others are left as they are
        return False
    if source.dim() != given["weight"].dim() or not 1 < given.get("groups", 1) == source.shape[1]:
        return False
    return max(stride if isinstance(stride, tuple | list) else [stride]) > 1 or max(source.shape[2:]) == 1
