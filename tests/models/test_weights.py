"""Weights from a file of one's own: strict, and what does not fit is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edp_fx.errors import ModelError
from edp_fx.models import load_model


def trained(classes: int = 7) -> nn.Module:
    return load_model("test_resnet", num_classes=classes, seed=5).model


@pytest.mark.parametrize("form", ["safetensors", "pt", "nested", "wrapped"])
def test_every_usual_form_is_read(form: str, tmp_path: Path) -> None:
    state = trained().state_dict()
    file = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(state, str(file))
    elif form == "nested":
        torch.save({"epoch": 3, "state_dict": state}, file)
    else:
        torch.save({f"module.{key}" if form == "wrapped" else key: one for key, one in state.items()}, file)
    loaded = load_model("test_resnet", num_classes=7, weights=file)
    assert all(torch.equal(one, state[key]) for key, one in loaded.model.state_dict().items())
    assert str(file) in loaded.weights


def test_a_classifier_of_other_classes_stays_random_and_is_named(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    torch.save(trained(7).state_dict(), file)
    loaded = load_model("test_resnet", num_classes=4, weights=file)
    assert "head.fc.weight" in loaded.weights or "fc.weight" in loaded.weights
    assert loaded.outputs == 4
    assert torch.equal(loaded.model.conv1[0].weight, trained(7).conv1[0].weight)  # type: ignore[index, union-attr]


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    state = trained().state_dict()
    first = next(iter(state))
    for damage, message in (
        ({key: one for key, one in state.items() if key != first}, f"{first}: not in the file"),
        ({**state, "extra.weight": torch.ones(2)}, "extra.weight: not in the model"),
        ({**state, first: torch.ones(3, 3)}, f"{first} is"),
        ({"step": 3}, "no weights by name"),
    ):
        torch.save(damage, file)
        with pytest.raises(ModelError, match=message) as caught:
            load_model("test_resnet", num_classes=7, weights=file)
        assert "\n" not in str(caught.value)


def test_a_file_with_code_is_not_run(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    torch.save(trained(), file)  # a pickled module
    with pytest.raises(ModelError, match="more than weights"):
        load_model("test_resnet", weights=file)
    with pytest.raises(ModelError, match="no such file"):
        load_model("test_resnet", weights=tmp_path / "none.pt")
    with pytest.raises(ModelError, match="one of the two"):
        load_model("test_resnet", weights=file, pretrained=True)
