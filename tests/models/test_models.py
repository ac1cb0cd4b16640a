"""Models by name, by callable, and the errors a user meets."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from edp_fx.errors import ModelError
from edp_fx.inputs import normalize, randomize_
from edp_fx.models import load_model


def test_timm_at_another_size_with_other_channels_and_classes() -> None:
    for name in ("resnet18", "test_vit"):
        loaded = load_model(name, num_classes=7, in_chans=1, img_size=96)
        assert loaded.input_size == (1, 96, 96)
        assert len(loaded.mean) == len(loaded.std) == 1
        assert loaded.model.eval()(*loaded.example_inputs).shape == (2, 7)


def test_the_seed_decides_the_weights() -> None:
    first, same, other = (load_model("resnet18", seed=seed).model.conv1.weight for seed in (3, 3, 4))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_torchvision() -> None:
    loaded = load_model("torchvision:resnet18", num_classes=5, in_chans=1, img_size=64)
    assert loaded.model.eval()(*loaded.example_inputs).shape == (2, 5)
    backbone = load_model("torchvision:fasterrcnn_mobilenet_v3_large_fpn", img_size=64)
    assert isinstance(backbone.model.eval()(*backbone.example_inputs), dict)
    inception = load_model("torchvision:googlenet", img_size=64).model
    assert isinstance(inception.train()(torch.randn(2, 3, 64, 64)), torch.Tensor)


def test_a_callable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_unknown_names_offer_near_ones(spec: str, offered: str) -> None:
    with pytest.raises(ModelError, match=offered):
        load_model(spec)


def test_inputs() -> None:
    x = torch.randn(1)
    assert normalize(x) == (x,)
    assert normalize([x, x]) == (x, x)
    for wrong in ((), {"a": x}, (x, 3)):
        with pytest.raises(ModelError):
            normalize(wrong)


def test_randomize_leaves_nothing_constant() -> None:
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


def test_a_callable_may_say_all_about_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_specs_here.py").write_text(
        "import torch\n"
        "from types import SimpleNamespace\n"
        "net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))\n"
        "def told():\n"
        "    return {'model': net, 'example_inputs': torch.randn(2, 3, 2, 2), 'mean': (0.1, 0.2, 0.3), 'std': 0.5,\n"
        "            'classes': ['cat', 'dog']}\n"
        "def as_object():\n    return SimpleNamespace(model=net, example_inputs=torch.randn(2, 3, 2, 2), mean=[0.5])\n"
        "def misspelt():\n    return {'model': net, 'means': 3}\n"
        "def flat():\n    return {'model': net, 'std': 0.0}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    loaded = load_model("my_specs_here:told")
    assert (loaded.mean, loaded.std, loaded.classes) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5), ("cat", "dog"))
    assert loaded.normalised
    assert loaded.outputs == 2
    assert load_model("my_specs_here:as_object").mean == (0.5, 0.5, 0.5)
    assert load_model("my_specs_here:told", mean=(0.4,)).mean == (0.4, 0.4, 0.4)
    loaded.check_classes(2, ["cat", "dog"])
    for count, names, message in ((3, (), "2 outputs and the data 3"), (2, ["cat", "cow"], "'dog' where .* 'cow'")):
        with pytest.raises(ModelError, match=message):
            loaded.check_classes(count, names)
    for name, message in (("misspelt", "'means'.*did you mean mean"), ("flat", "above 0")):
        with pytest.raises(ModelError, match=message):
            load_model(f"my_specs_here:{name}")
    with pytest.raises(ModelError, match="takes no argument 'pretrained'"):
        load_model("my_specs_here:told", pretrained=True)


def test_published_weights_keep_all_but_the_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network: the weights torchvision would fetch are made here."""
    import torchvision

    published = torchvision.models.resnet18(weights=None).state_dict()
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", lambda self, **options: dict(published))
    loaded = load_model("torchvision:resnet18", num_classes=3, img_size=64, pretrained=True)
    assert torch.equal(loaded.model.conv1.weight, published["conv1.weight"])  # type: ignore[union-attr]
    assert loaded.outputs == 3
    assert "fc.weight, fc.bias random" in loaded.weights
    assert loaded.normalised


def test_a_saved_directory_takes_no_other_classes(tmp_path: Path) -> None:
    import edp_fx

    source = load_model("test_resnet", num_classes=4, img_size=32)
    gm = edp_fx.trace(source.model, source.example_inputs)
    facts = {"mean": [0.1] * 3, "std": [0.2] * 3, "class_names": list("abcd")}
    edp_fx.save(gm, tmp_path / "m", source.example_inputs, extra=facts)
    loaded = load_model(str(tmp_path / "m"))
    assert (loaded.classes, loaded.mean, loaded.normalised) == (tuple("abcd"), (0.1, 0.1, 0.1), True)
    with pytest.raises(ModelError, match="4 outputs, not 9"):
        load_model(str(tmp_path / "m"), num_classes=9)
    with pytest.raises(ModelError, match="its own weights"):
        load_model(str(tmp_path / "m"), pretrained=True)
