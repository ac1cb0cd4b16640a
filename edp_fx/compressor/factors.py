"""The two factors of a pair, and how strongly the norm behind it scales its output rows."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edp_fx.pairs import Pair


def factors(pair: Pair) -> tuple[nn.Parameter, nn.Parameter]:
    """The weights of basis and coefficient."""
    basis, coefficient = pair.basis.weight, pair.coefficient.weight
    assert isinstance(basis, nn.Parameter)
    assert isinstance(coefficient, nn.Parameter)
    return basis, coefficient


@torch.no_grad()
def coefficient_gains(gm: fx.GraphModule) -> dict[str, Tensor]:
    """Per coefficient weight (by parameter name) |gamma| / sqrt(var + eps) [rows], where a batch norm
    follows alone."""
    modules = dict(gm.named_modules())
    result: dict[str, Tensor] = {}
    for node in gm.graph.nodes:
        if node.op != "call_module" or len(node.users) != 1:
            continue
        target = str(node.target)
        name = f"{target}.coefficient" if isinstance(modules.get(target), Pair) else target
        if not name.endswith("coefficient"):
            continue
        user = next(iter(node.users))
        norm = modules.get(str(user.target)) if user.op == "call_module" else None
        if isinstance(norm, _BatchNorm) and norm.running_var is not None:
            gain = (norm.running_var + norm.eps).rsqrt()
            result[f"{name}.weight"] = gain * norm.weight.abs() if isinstance(norm.weight, nn.Parameter) else gain
    return result
