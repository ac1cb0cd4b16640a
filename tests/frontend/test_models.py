"""Models by name, by callable, and the errors a user meets."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from edp_fx.errors import ModelError
from edp_fx.inputs import normalize, randomize_
from edp_fx.models import load_model


def test_timm_at_another_size_with_other_channels_and_classes():
    for name in ("resnet18", "test_vit"):
        loaded = load_model(name, num_classes=7, in_chans=1, img_size=96)
        assert loaded.input_size == (1, 96, 96)
        assert len(loaded.mean) == len(loaded.std) == 1
        assert loaded.model.eval()(*loaded.example_inputs).shape == (2, 7)


def test_the_seed_decides_the_weights():
    first, same, other = (load_model("resnet18", seed=seed).model.conv1.weight for seed in (3, 3, 4))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_torchvision():
    loaded = load_model("torchvision:resnet18", num_classes=5, in_chans=1, img_size=64)
    assert loaded.model.eval()(*loaded.example_inputs).shape == (2, 5)
    backbone = load_model("torchvision:fasterrcnn_mobilenet_v3_large_fpn", img_size=64)
    assert isinstance(backbone.model.eval()(*backbone.example_inputs), dict)
    inception = load_model("torchvision:googlenet", img_size=64).model
    assert isinstance(inception.train()(torch.randn(2, 3, 64, 64)), torch.Tensor)


def test_a_callable(tmp_path, monkeypatch):
    (tmp_path / "my_models_here.py").write_text(
        "import torch\n"
        "def plain():\n    return torch.nn.Conv2d(3, 4, 1)\n"
        "def both(num_classes=3):\n    return torch.nn.Linear(6, num_classes), torch.randn(5, 6)\n"
        "def wrong():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert load_model("my_models_here:plain", img_size=16).example_inputs[0].shape == (2, 3, 16, 16)
    loaded = load_model("my_models_here:both", num_classes=9)
    assert loaded.model(*loaded.example_inputs).shape == (5, 9)
    assert loaded.input_size == (6,)
    with pytest.raises(ModelError, match="int"):
        load_model("my_models_here:wrong")
    with pytest.raises(ModelError, match="cannot import"):
        load_model("my_models_here:missing")


@pytest.mark.parametrize(
    ("spec", "offered"), [("resnt18", "resnet18"), ("torchvision:resnet19", "resnet18"), ("./nowhere", "directory")]
)
def test_unknown_names_offer_near_ones(spec, offered):
    with pytest.raises(ModelError, match=offered):
        load_model(spec)


def test_inputs():
    x = torch.randn(1)
    assert normalize(x) == (x,)
    assert normalize([x, x]) == (x, x)
    for wrong in ((), {"a": x}, (x, 3)):
        with pytest.raises(ModelError):
            normalize(wrong)


def test_randomize_leaves_nothing_constant():
    model = load_model("resnet18").model
    weight = model.layer1[0].conv1.weight.clone()
    randomize_(model, seed=1)
    assert torch.equal(weight, model.layer1[0].conv1.weight)
    stem = model.conv1.weight.detach()  # by the fan of its outputs: too small for its inputs
    assert float(stem.std()) == pytest.approx(stem[0].numel() ** -0.5, rel=0.1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean, module.running_var):
                assert values.std() > 0.01
    state = {k: v.clone() for k, v in model.state_dict().items()}
    randomize_(model, seed=1)
    assert all(torch.isfinite(v).all() for v in state.values())
