"""Weights that hooks and parametrisations make are saved as they are computed with; other hooks are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import edp_fx
from edp_fx.checkpoint import check_saveable
from edp_fx.errors import CheckpointError


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def masked(layer: nn.Module) -> nn.Module:
    prune.random_unstructured(layer, "weight", amount=0.5)
    return prune.l1_unstructured(layer, "weight", amount=0.2)


def parametrized_twice(layer: nn.Module) -> nn.Module:
    nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    nn.utils.parametrize.register_parametrization(layer, "bias", Doubled())
    return parametrizations.spectral_norm(layer)


MADE: dict[str, Callable[[Any], nn.Module]] = {
    "weight norm, by a hook": weight_norm,
    "spectral norm, by a hook": spectral_norm,
    "a mask": masked,
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "several": parametrized_twice,
}


def net(make: Callable[[Any], nn.Module]) -> nn.Module:
    return nn.Sequential(make(nn.Conv2d(3, 16, 3)), nn.ReLU(), make(nn.Conv2d(16, 8, 1)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MADE)
def test_the_weight_in_use_is_saved(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained, model = net(MADE[name]), net(MADE[name])
    model.load_state_dict(trained.state_dict())  # a hook's weight is now that of before
    x = torch.randn(2, 3, 8, 8)
    gm = edp_fx.trace(model, x)
    names = list(gm.state_dict())
    check_saveable(gm, x)
    back = edp_fx.load(edp_fx.save(gm.train(), tmp_path, x))
    assert list(gm.state_dict()) == names
    with torch.no_grad():
        torch.testing.assert_close(back(x), model.eval()(x), rtol=1e-5, atol=1e-6)
    assert sorted(back.state_dict()) == sorted(
        nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 1)).state_dict()
    )
    assert {type(one) for one in list(back.modules())[1:]} == {nn.Conv2d, nn.ReLU}
    back.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in back.parameters())


@pytest.mark.filterwarnings("ignore")
def test_a_recurrent_layer_with_weight_norm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 7, 4)
    for number, make in enumerate((weight_norm, parametrizations.weight_norm)):
        layer = make(make(nn.GRU(4, 5, batch_first=True), "weight_hh_l0"), "weight_ih_l0")
        graph = torch.fx.Graph()
        graph.output(graph.call_module("layer", (graph.placeholder("x"),)))
        gm = torch.fx.GraphModule(nn.ModuleDict({"layer": layer}), graph).eval()
        back = edp_fx.load(edp_fx.save(gm, tmp_path / str(number), x))
        with torch.no_grad():
            torch.testing.assert_close(gm(x)[0], back(x)[0], rtol=1e-5, atol=1e-6)
        assert sorted(back.layer.state_dict()) == sorted(nn.GRU(4, 5).state_dict())


def test_a_hook_that_stays_is_refused_by_name(tmp_path: Path) -> None:
    def noisy(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        return out * 2

    x = torch.randn(2, 3, 8, 8)
    for register in ("register_forward_hook", "register_forward_pre_hook"):
        gm = edp_fx.trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), x)
        handle = getattr(gm.get_submodule("0"), register)(noisy)
        refused = r"'0'.*noisy.*handle\.remove"
        with pytest.raises(CheckpointError, match=refused):
            check_saveable(gm)
        with pytest.raises(CheckpointError, match=refused):
            edp_fx.save(gm, tmp_path / "net", x)
        assert not (tmp_path / "net").exists()
        handle.remove()
    edp_fx.save(gm, tmp_path / "net", x)


def test_what_would_load_as_another_network_is_not_written(tmp_path: Path) -> None:
    x = torch.randn(2, 8)
    gm = edp_fx.trace(nn.Sequential(nn.Linear(8, 8), nn.PReLU()), x)
    gm.get_submodule("1").forward = lambda x: x * 3  # type: ignore[method-assign]
    with pytest.raises(CheckpointError, match=r"'1'.*forward was replaced"):
        edp_fx.save(gm, tmp_path / "net", x)
    gm = edp_fx.trace(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), x)
    gm.forward = lambda x: x * 3  # type: ignore[method-assign]
    with pytest.raises(CheckpointError, match="nothing was written: output 0 would be another"):
        edp_fx.save(gm, tmp_path / "net", x)
    with pytest.raises(CheckpointError, match="does not run on the example inputs"):
        edp_fx.save(edp_fx.trace(nn.Linear(8, 8), x), tmp_path / "net", torch.randn(2, 9))
    assert not (tmp_path / "net").exists()


def test_attributes_of_other_code(tmp_path: Path) -> None:
    """As ultralytics gives every layer an index, a name and a source; loggers and the like are left out."""
    x = torch.randn(2, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Upsample(scale_factor=2), nn.GELU())
    for index, layer in enumerate(model):
        layer.i, layer.f, layer.type, layer.np = index, [-1, 2], type(layer).__name__, torch.tensor(3).numpy()
        layer.friends, layer.logger, layer.step = {"a", "b"}, object(), lambda: 0
    gm = edp_fx.trace(model, x).eval()
    back = edp_fx.load(edp_fx.save(gm, tmp_path, x))
    with torch.no_grad():
        assert torch.equal(back(x), gm(x))
    layer = back.get_submodule("1")
    assert (layer.i, layer.f, layer.friends) == (1, [-1, 2], {"a", "b"})
    assert not hasattr(layer, "logger")
    assert back.half().get_submodule("0").weight.dtype == torch.float16  # `type` is torch's own again


def test_an_attribute_the_layer_reads_is_not_left_out(tmp_path: Path) -> None:
    graph = torch.fx.Graph()
    graph.output(graph.call_module("layer", (graph.placeholder("x"),)))
    layer = nn.Upsample(scale_factor=2)
    layer.mode = object()  # type: ignore[assignment]
    with pytest.raises(CheckpointError, match=r"'layer' \(Upsample\) for its attribute 'mode'"):
        edp_fx.save(torch.fx.GraphModule(nn.ModuleDict({"layer": layer}), graph), tmp_path / "net")


def test_tensors_of_every_type_tied_hidden_and_shared(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.b.weight = self.a.weight
            self.register_buffer("view", self.a.weight.detach()[2:4])
            self.register_buffer("hidden", torch.arange(8.0), persistent=False)
            for dtype in KINDS:
                self.register_buffer(f"of_{str(dtype)[6:]}", torch.ones(8).to(dtype))

        def forward(self, x: Tensor, index: Tensor, mask: Tensor) -> dict[str, Any]:
            y = self.b(self.a(x)) + self.hidden + self.view[0]
            for dtype in KINDS:
                held = getattr(self, f"of_{str(dtype)[6:]}")
                y = y + (held.real if held.is_complex() else held).to(x.dtype)
            return {"one": y[:, index], "two": [y.masked_fill(mask, 0.0), (y > 0, index + 1)]}

    x, index, mask = torch.randn(3, 8), torch.tensor([7, 5]), torch.tensor([True, False] * 4)
    gm = edp_fx.trace(Net(), (x, index, mask)).eval()
    back = edp_fx.load(edp_fx.save(gm, tmp_path, (x, index, mask)))
    for one, other in zip(*(torch.utils._pytree.tree_leaves(net(x, index, mask)) for net in (gm, back)), strict=True):
        assert torch.equal(one, other)
    assert back.b.weight is back.a.weight
    assert list(back.state_dict()) == list(gm.state_dict())
    given = edp_fx.checkpoint.example_inputs(back.meta["edp_fx.recipe"])
    assert given[1].min() >= 5
    assert given[1].max() <= 7
    back(*given)


KINDS = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
)


def test_what_a_file_of_weights_cannot_hold(tmp_path: Path) -> None:
    for value in (torch.ones(8, dtype=torch.complex128), torch.eye(8).to_sparse(), torch.ones(8, device="meta")):
        gm = edp_fx.trace(nn.Linear(8, 8), torch.randn(2, 8))
        gm.register_buffer("held", value)
        with pytest.raises(CheckpointError, match="cannot save 'held'") as said:
            edp_fx.save(gm, tmp_path / "net")
        assert "\n" not in str(said.value)
    assert not (tmp_path / "net").exists()


class Own(nn.Module):
    """Kept whole, as its path depends on its mode: a class that no file may name."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) if self.training else self.other(self.one(x))


def test_compress_says_before_training_what_it_could_not_save_after() -> None:
    batches = [(torch.randn(4, 8), torch.tensor([0, 1, 2, 1])) for _ in range(4)]
    net = nn.Sequential(nn.Linear(8, 8), Own(), nn.Linear(8, 3))
    with pytest.warns(UserWarning, match=r"will not be able to write .*'1' of your own class"):
        edp_fx.compress(net, batches, epochs=1, macs=0.9)
