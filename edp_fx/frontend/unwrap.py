"""Models in a wrapper of torch's: taken out of it, or refused where their Python code is not there to be traced."""

from __future__ import annotations

from typing import Any

from torch import jit, nn

from edp_fx.errors import ModelError, TraceError
from edp_fx.frontend.assemble import share

_INNER = {
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.optim.swa_utils.AveragedModel": "module",
}


def unwrapped(model: Any) -> nn.Module:
    """The module that ``torch.compile``, ``DataParallel``, ``DistributedDataParallel`` or an average wraps.

    Its parameters have their own names again. Where modules inside of a model are wrapped, it is a copy of the model's
    structure without the wrappers; the model stays as it is.

    Raises:
        ModelError: no module.
        TraceError: a scripted module, or one whose parameters are sharded.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"a model is a torch.nn.Module, not {_path(type(model))}: give the module it was made from")
    while (inner := _INNER.get(_path(type(model)))) is not None:
        model = getattr(model, inner)
    if isinstance(model, jit.ScriptModule):
        raise TraceError(f"{_name(model)} is a torch.jit.ScriptModule: give the nn.Module that was scripted or traced")
    for name, module in model.named_modules():
        if any(_path(kind).startswith("torch.distributed.fsdp.") for kind in type(module).__mro__):
            raise TraceError(
                f"{name or 'the model'} is sharded (FSDP): give the model before it is sharded, with its weights "
                "gathered by a full state dict"
            )
    return _without_wrappers(model)


def _without_wrappers(model: nn.Module) -> nn.Module:
    """``model``, or a structural copy where a module below it is wrapped."""
    if not any(_path(type(module)) in _INNER for module in model.modules()):
        return model
    model = share(model, {})
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child is not None and _path(type(child)) in _INNER:
                module._modules[name] = unwrapped(child)
    return model


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _name(model: jit.ScriptModule) -> str:
    return str(getattr(model, "original_name", type(model).__name__))
