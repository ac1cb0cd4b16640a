"""Functions of torch that do not go into a graph as they are called: traced through, or a module instead."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import nn

from edp_fx.frontend.layers import DROPOUTS, AttentionDropout, BatchNorm
from edp_fx.frontend.proxies import TrainingFlag


def _undispatched(function: Callable[..., Any]) -> Callable[..., Any]:
    """The Python body of a torch function, without the check that hands proxies away as one opaque call."""
    assert isinstance(function, types.FunctionType)
    scope = {**function.__globals__, "has_torch_function": lambda *_: False}
    body = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__)
    body.__kwdefaults__ = function.__kwdefaults__
    return body


# Functions that contain linear layers: traced through.
COMPOSITE = {F.multi_head_attention_forward: _undispatched(F.multi_head_attention_forward)}

# Functions that do one thing in train mode and another in eval mode, by their argument ``training``.
SWITCHED = (*DROPOUTS, F.batch_norm)


def by_mode(target: Any, args: Any, kwargs: Any) -> tuple[str, nn.Module, tuple[Any, ...]] | None:
    """What is called with ``self.training`` as a module (what kind, the module, its arguments); None where the switch
    is constant."""
    bound = inspect.signature(target).bind(*args, **kwargs)
    bound.apply_defaults()
    values = bound.arguments
    if type(values["training"]) is not TrainingFlag:
        return None
    if target is F.batch_norm:
        given = tuple(values[name] for name in ("input", "running_mean", "running_var", "weight", "bias"))
        return "batch_norm", BatchNorm(values["momentum"], values["eps"]), given
    return "dropout", DROPOUTS[target](values["p"], values["inplace"]), (values["input"],)


def attention(args: Any, kwargs: Any) -> tuple[Any, Any, nn.Module | None]:
    """Attention with a dropout that is not nil becomes a module: models switch it by train and eval mode."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    options = {**dict(zip(names, args)), **kwargs}
    p = options.get("dropout_p", 0.0)
    if isinstance(p, (int, float)) and p == 0:
        return args, kwargs, None
    del options["dropout_p"]
    first = tuple(options.pop(name) for name in names[:3])
    return first, options, AttentionDropout(float(p))
