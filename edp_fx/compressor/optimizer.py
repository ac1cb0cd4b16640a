"""The optimiser's side of a network that shrinks: parameter groups and state that follow the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from edp_fx.compressor.factors import factors
from edp_fx.compressor.kinds.base import Applied
from edp_fx.pairs import Pair


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: weights with decay; vectors (biases, norms) and coefficient matrices without.

    Decay on the coefficient alone would be undone by a growing basis, and decay on the basis alone holds the
    scale of the product, since the coefficient's gradient shrinks with the basis.
    """
    undecayed = {id(factors(module)[1]) for module in model.modules() if isinstance(module, Pair)}
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": weight_decay},
        {"params": [], "weight_decay": 0.0},
    ]
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[parameter.dim() <= 1 or id(parameter) in undecayed]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def without_decay(optimizer: Optimizer) -> dict[int, int]:
    """By the position of each parameter group that has one, the position of the group that differs in having no weight
    decay only. To be asked before a schedule changes options: a resumed run has to find the same.
    """

    def options(group: Mapping[str, Any]) -> list[Any]:
        return [group[key] for key in optimizer.defaults if key != "weight_decay"]

    groups = optimizer.param_groups
    undecayed = [number for number, group in enumerate(groups) if group.get("weight_decay") == 0]
    alike = {
        number: [other for other in undecayed if options(groups[other]) == options(group)]
        for number, group in enumerate(groups)
    }
    return {number: others[0] for number, others in alike.items() if others}


def carry_state(
    optimizer: Optimizer,
    before: Mapping[str, tuple[nn.Parameter, torch.Size]],
    after: Mapping[str, nn.Parameter],
    applied: Applied,
    undecayed: Mapping[int, int],
) -> None:
    """Point ``optimizer`` at the parameters of the network after pruning or merging and slice its state
    along.

    A parameter of the same name takes over the state of its predecessor, index-selected where pruning
    selected. A parameter that is new joins the group of what it was made from and starts afresh: a merged layer's that
    of its parts, a separated layer's that of the layer. Its depthwise kernels go to the group that is alike but without
    weight decay, where there is one: decay on both factors of a product holds its scale twice, and kernels of so few
    weights suffer from it (Howard et al., "MobileNets", 2017, section 3.2).

    Args:
        optimizer: any torch optimiser; state tensors shaped like their parameter are sliced, others kept.
        before: name to (parameter object, its shape) before the change.
        after: name to parameter after it.
        applied: what the change did.
        undecayed: what :func:`without_decay` gave.
    """
    name_of = {id(parameter): name for name, (parameter, _) in before.items()}
    homes = {
        name_of[id(parameter)]: number
        for number, group in enumerate(optimizer.param_groups)
        for parameter in group["params"]
        if id(parameter) in name_of
    }
    origins = applied.origins
    called = {  # optimisers made from named parameters keep the names beside them
        id(parameter): name
        for group in optimizer.param_groups
        for parameter, name in zip(group["params"], group.get("param_names", ()))
    }
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in name_of]
    for name, parameter in after.items():
        number = next((homes[one] for one in _made_from(name, origins) if one in homes), -1)
        if number < 0:
            continue  # was not trained before either
        if name not in before:
            called[id(parameter)] = name
            if name in applied.undecayed:
                number = undecayed.get(number, number)
            optimizer.param_groups[number]["params"].append(parameter)
            continue
        optimizer.param_groups[number]["params"].append(parameter)
        old, shape = before[name]
        called[id(parameter)] = called.get(id(old), name)
        state = optimizer.state.pop(old, None)
        if state is not None:
            optimizer.state[parameter] = {
                key: sliced(value, shape, applied.kept.get(name, {})) for key, value in state.items()
            }
    alive = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for gone in [one for one in optimizer.state if id(one) not in alive]:
        del optimizer.state[gone]
    for group in optimizer.param_groups:
        if "param_names" in group:
            group["param_names"] = [called[id(parameter)] for parameter in group["params"]]


def sliced(value: Any, shape: torch.Size, chosen: Mapping[int, NDArray[np.int64]]) -> Any:
    """``value`` with the chosen indices of each axis where it is a tensor of that shape, else as it is."""
    if not isinstance(value, Tensor) or value.shape != shape:
        return value
    for axis, index in chosen.items():
        value = value.index_select(axis, torch.as_tensor(np.asarray(index), device=value.device))
    return value.clone()


def _made_from(name: str, origins: Mapping[str, str]) -> list[str]:
    """Parameters that ``name`` may have been before: itself, or what it was made or merged from."""
    origin = origins.get(name, name)
    layer, _, leaf = origin.rpartition(".")
    return [origin, f"{layer}.basis.weight" if leaf == "weight" else f"{layer}.coefficient.{leaf}"]
