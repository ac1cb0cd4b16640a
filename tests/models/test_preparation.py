"""Images are made ready as a model's own configuration says, by the command, too, and that goes on to what is saved."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import edp_fx
from edp_fx.cli import main
from edp_fx.data import load_data
from edp_fx.errors import ModelError
from edp_fx.models import load_model

OWN = """
import torch
class Mean(torch.nn.Module):
    def forward(self, x):
        return x.mean((2, 3))[:, :2]
def plain():
    return {"model": Mean(), "example_inputs": torch.randn(2, 3, 8, 8), "mean": 0.5, "std": 0.25}
def squashed():
    return plain() | {"interpolation": "nearest", "crop_mode": "squash", "crop_pct": 1.0}
def whole():
    return plain() | {"interpolation": "nearest", "crop_pct": 1.0}
def wrong():
    return plain() | {"interpolation": "cubic"}
def too_much():
    return plain() | {"crop_pct": 87.5}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with models in own.py and images twice as wide as high, red on the left and green on the right."""
    (tmp_path / "own.py").write_text(OWN)
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:, :4, 0] = pixels[:, 4:, 1] = 255
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_callable_says_how_images_are_made_ready(place: Path) -> None:
    shares = {}
    for name in ("squashed", "whole"):
        loaded = load_model(f"own:{name}")
        data = load_data("folder:images", img_size=8, workers=0, augment=False, **loaded.preparation)
        images, _ = next(iter(data.loader("all")))
        shares[name] = float((images[:, 0] > 0).float().mean())  # red
        assert set(images.unique().tolist()) == {-2.0, 2.0}, "mean and deviation"
    assert shares == {"squashed": 0.25, "whole": 0.0}
    for name, message in (("wrong", "interpolation='cubic'"), ("too_much", "crop_pct=87.5")):
        with pytest.raises(ModelError, match=message):
            load_model(f"own:{name}")


def test_a_saved_model_keeps_how(place: Path) -> None:
    loaded = load_model("own:squashed")
    gm = edp_fx.trace(loaded.model, loaded.example_inputs)
    edp_fx.save(gm, "saved", loaded.example_inputs, extra=loaded.facts)
    assert load_model("saved").preparation == loaded.preparation


def test_published_weights_bring_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *args, **options: None)
    monkeypatch.setattr("edp_fx.models.torchvision_models._published", lambda *args: "torchvision's")
    assert load_model("beit_base_patch16_224", pretrained=True).preparation["crop_pct"] == 0.9
    assert load_model("torchvision:resnet50", pretrained=True).cropping["crop_pct"] == 224 / 232
    assert not load_model("torchvision:resnet50").preparation


def test_mean_and_deviation_by_the_command(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main("evaluate own:plain --data folder:images --split all --mean 0.1,0.2,0.3 --std 1 --json x.json".split())
    assert not stop.value.code
    assert "mean 0.100, 0.200, 0.300, deviation 1.000, 1.000, 1.000; bilinear, 87.5 %" in capsys.readouterr().out
    assert json.loads(Path("x.json").read_text())["own:plain"]["images"] == 8


def test_an_engine_alone_takes_what_its_sidecar_says(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in (
        "lower own:squashed --out own.onnx --target onnx",
        "evaluate --engine own.onnx --data folder:images --split all",
    ):
        with pytest.raises(SystemExit) as stop:
            main(line.split())
        assert not stop.value.code
    assert "nearest, squashed" in capsys.readouterr().out


def test_training_images_are_cut_with_the_same_interpolation() -> None:
    from edp_fx.data.base import Reading
    from edp_fx.data.images import transforms

    pixels = np.zeros((40, 40, 3), dtype=np.uint8)
    pixels[::2] = 255
    torch.manual_seed(0)
    learn, _ = transforms(Reading(1, 16, 0, 0, mean=(0.0,) * 3, std=(1.0,) * 3, cropping={"interpolation": "nearest"}))
    assert set(learn(Image.fromarray(pixels)).unique().tolist()) <= {0.0, 1.0}
