"""A layer as a file can hold it: its weights as they are computed with, no hooks, no parametrisations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from edp_fx.errors import CheckpointError
from edp_fx.frontend.hooks import WEIGHT_HOOKS
from edp_fx.inputs import eval_mode


def plain(layer: nn.Module, path: str) -> nn.Module:
    """``layer`` itself where it has neither hooks nor parametrisations, else a copy that computes the same in eval
    mode without them: the weight that a parametrisation, weight norm, spectral norm or pruning mask makes is a plain
    parameter there. Other tensors are shared.

    Raises:
        CheckpointError: the layer has another forward hook, which is code, and a file holds none; or it is one of
            torch's lazy layers, which has not run yet.
    """
    if isinstance(layer, LazyModuleMixin):
        raise CheckpointError(f"cannot save {path!r}: it has no sizes before its first run; run the network once")
    known: list[Any] = []
    for hook in (*layer._forward_pre_hooks.values(), *layer._forward_hooks.values()):
        if not isinstance(hook, WEIGHT_HOOKS):
            name = getattr(hook, "__qualname__", type(hook).__name__)
            raise CheckpointError(
                f"cannot save {path or 'the network'!r}: it has the forward hook {name}, and a file holds no code; "
                "remove the hook (handle.remove()), or move what it does into the model's forward"
            )
        known.append(hook)
    if not known and not is_parametrized(layer):
        return layer
    copy = _copy(layer)
    with eval_mode(layer), torch.no_grad():
        for hook in known:
            _remove(copy, *_hooked(hook, layer))
        if is_parametrized(layer):
            parametrizations = layer.parametrizations
            assert isinstance(parametrizations, nn.ModuleDict)
            for name, made in parametrizations.items():
                sources = [*made.parameters(recurse=False)]
                _register(copy, name, getattr(layer, name), sources)
            del copy._modules["parametrizations"]
    if isinstance(copy, nn.RNNBase):
        copy._init_flat_weights()
    return copy


def _copy(layer: nn.Module) -> nn.Module:
    kind = type(layer)
    if is_parametrized(layer):
        kind = kind.__bases__[0]  # torch made a class for this one layer, with a property for each weight
    copy: nn.Module = object.__new__(kind)
    for key, value in vars(layer).items():
        copy.__dict__[key] = value.copy() if key.startswith("_") and isinstance(value, (dict, set)) else value
    copy._forward_pre_hooks.clear()
    return copy


def _hooked(hook: Any, layer: nn.Module) -> tuple[str, Tensor, tuple[str, ...]]:
    """What a hook computes: the weight's name, its value, and the names it is computed from."""
    if isinstance(hook, WeightNorm):
        return hook.name, hook.compute_weight(layer), (f"{hook.name}_g", f"{hook.name}_v")
    if isinstance(hook, SpectralNorm):
        value = hook.compute_weight(layer, do_power_iteration=False)
        return hook.name, value, tuple(f"{hook.name}_{part}" for part in ("orig", "u", "v"))
    name = hook._tensor_name
    return name, hook.apply_mask(layer), (f"{name}_orig", f"{name}_mask")


def _remove(copy: nn.Module, name: str, value: Tensor, parts: tuple[str, ...]) -> None:
    """Put ``value`` in the place of the tensors it is computed from."""
    sources = [copy._parameters.pop(part) for part in parts if part in copy._parameters]
    for part in parts:
        copy._buffers.pop(part, None)
    _register(copy, name, value, [one for one in sources if one is not None])


def _register(copy: nn.Module, name: str, value: Tensor, sources: list[nn.Parameter]) -> None:
    """``value`` as a parameter where it is computed from parameters, as a buffer otherwise."""
    copy.__dict__.pop(name, None)
    if sources:
        copy.register_parameter(name, nn.Parameter(value, any(one.requires_grad for one in sources)))
    else:
        copy.register_buffer(name, value)
