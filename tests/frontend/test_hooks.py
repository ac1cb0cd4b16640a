"""Forward hooks of layers are followed: nodes of the graph, which insertion, pruning and saving see."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import edp_fx

SCALE = torch.rand(8, 1, 1) + 0.5


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()), nn.Conv2d(8, 4, 1)
    )


def doubled(module: Any, args: Any, out: Tensor) -> Tensor:
    return out * 2


def scaled(module: Any, args: Any, out: Tensor) -> Tensor:
    return out * SCALE + args[0].mean() + module.bias.view(-1, 1, 1)


def clipped(module: Any, args: Any) -> Tensor:
    return args[0].clamp(-1, 1)


def shifted(module: Any, args: Any) -> tuple[Tensor]:
    return (args[0] + 0.25,)


def halved(module: Any, args: Any, out: Tensor) -> Tensor:
    return nn.functional.avg_pool2d(out, 2)


HOOKS: dict[str, Callable[[nn.Sequential], Any]] = {
    "after": lambda model: model[0].register_forward_hook(doubled),
    "two after": lambda model: (model[2][0].register_forward_hook(scaled), model[2][0].register_forward_hook(doubled)),
    "before": lambda model: model[3].register_forward_pre_hook(clipped),
    "another size": lambda model: model[2][0].register_forward_hook(halved),
    "both": lambda model: (model[3].register_forward_pre_hook(shifted), model[3].register_forward_hook(doubled)),
    "of a container": lambda model: model[2].register_forward_hook(doubled),
}


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_is_part_of_the_graph(name: str, tmp_path: Path) -> None:
    model, x = net(), torch.randn(2, 3, 8, 8)
    HOOKS[name](model)
    gm = edp_fx.trace(model, x).eval()
    wanted = model.eval()(x)
    assert torch.equal(gm(x), wanted)
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in gm.modules())
    assert list(gm.state_dict()) == list(copy.deepcopy(gm).state_dict()) == list(model.state_dict())
    back = edp_fx.load(edp_fx.save(gm, tmp_path, x))
    assert torch.equal(back(x), wanted)
    small = edp_fx.prune_and_merge(edp_fx.insert(copy.deepcopy(gm)), x).eval()
    torch.testing.assert_close(small(x), wanted, rtol=1e-4, atol=1e-5)
    assert len(model[0]._forward_hooks) == (name == "after")


def test_a_layer_called_twice_has_its_hook_twice() -> None:
    layer = nn.Conv2d(8, 8, 1)
    layer.register_forward_hook(doubled)
    model, x = nn.Sequential(layer, nn.ReLU(), layer), torch.randn(2, 8, 4, 4)
    gm = edp_fx.trace(model, x)
    assert torch.equal(gm(x), model(x))
    assert sum(node.name.startswith("mul") for node in gm.graph.nodes) == 2


def test_a_hook_that_looks_on_stays_and_one_that_cannot_be_followed_too() -> None:
    seen: list[Any] = []
    model, x = net(), torch.randn(2, 3, 8, 8)
    model[0].register_forward_hook(lambda module, args, out: seen.append(type(out)))
    model[3].register_forward_hook(lambda module, args, kwargs, out: out + 1, with_kwargs=True)
    gm = edp_fx.trace(model, x)
    seen.clear()
    assert torch.equal(gm(x), model(x))
    assert seen == [Tensor, Tensor]
