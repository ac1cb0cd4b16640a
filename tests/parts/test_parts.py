"""Parts of small models whose own code cannot be a graph: found, tied to each other, compressed in place."""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edp_fx
from edp_fx.compressor import Compressor, parameter_groups
from edp_fx.errors import CheckpointError, TraceError
from edp_fx.inputs import randomize_
from edp_fx.leaves import tensors_of
from edp_fx.validation.compare import relative


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def looks_at_values(x: Tensor) -> Tensor:
    """What no graph can hold."""
    return x * 2 if float(x.detach().sum()) > 1e9 else x


class Pyramid(nn.Module):
    """Two feature maps by name."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep, self.fine, self.coarse = block(3, 8), block(8, 16), block(8, 12), block(16, 12)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        x = self.stem(x)
        return OrderedDict(fine=self.fine(x), coarse=self.coarse(self.deep(F.max_pool2d(x, 2))))


class Head(nn.Module):
    """One head for a feature map of any size."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.tower, self.scores = block(12, 12), nn.Conv2d(12, classes, 1)

    def forward(self, x: Tensor, scale: float = 1.0) -> list[Tensor]:
        return [self.scores(self.tower(x)) * scale]

    def loss(self, scores: Tensor) -> Tensor:
        return scores.square().mean()


class Detector(nn.Module):
    """Images as a list, one head on two levels, a loss in train mode and scores above a threshold in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head, self.rest = Pyramid(), Head(), nn.Linear(5, 5)

    def forward(self, images: list[Tensor], wanted: Tensor | None = None) -> Any:
        x = looks_at_values(torch.stack(images))
        scores = [self.head(level)[0].flatten(2).mean(2) for level in self.backbone(x).values()]
        whole = looks_at_values(F.linear(torch.cat(scores), self.rest.weight))
        if self.training:
            return {"loss": self.head.loss(whole) + wanted.mean()}
        return [row[row > 0] for row in whole]


IMAGES = list(torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
WANTED = torch.ones(2)


def prepared(model: nn.Module, *args: Any, **options: Any) -> tuple[edp_fx.parts.Parts, list[Tensor]]:
    """The parts of a model with random statistics and gammas, and what it gave in eval mode before."""
    randomize_(model)
    before = given(model, *args)
    return edp_fx.trace_parts(model, args, **options), before


def given(model: nn.Module, *args: Any) -> list[Tensor]:
    with torch.no_grad():
        return [one.clone() for one in tensors_of(model.eval()(*args))]


def compressed(parts: edp_fx.parts.Parts, loss: Any, steps: int = 4, **options: Any) -> Compressor:
    """A compressor that is finished, after some steps of the whole model."""
    model = parts.model.train()
    optimizer = torch.optim.SGD(parameter_groups(model, 1e-4), lr=1e-3)
    compressor = Compressor(parts.graph, parts.inputs, optimizer=optimizer, total_steps=steps, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
        compressor.step()
    compressor.finish()
    return compressor


def tied(parts: edp_fx.parts.Parts, producer: str) -> Any:
    """The group of the channels a layer makes."""
    graph = edp_fx.analyze(parts.graph, parts.inputs)
    (found,) = [
        one
        for one in graph.groups
        if any(m.parameter == f"{producer}.weight" and m.role == "producer" for m in one.members)
    ]
    return found


def test_outermost_parts_are_found_and_the_model_computes_what_it_did() -> None:
    model = Detector()
    parts, before = prepared(model, IMAGES, WANTED)
    assert parts.names == ("backbone", "head")
    assert relative(before, given(model, IMAGES, WANTED)) < 1e-6
    assert isinstance(model.backbone(torch.stack(IMAGES)), OrderedDict)
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in Detector().named_parameters()}
    assert all(one is other for one, other in zip(model.parameters(), parts.graph.parameters(), strict=True))


def test_what_only_parts_read_is_tied_to_them_and_what_others_read_stays() -> None:
    parts, _ = prepared(Detector(), IMAGES, WANTED)
    pyramid = tied(parts, "backbone.fine.0")
    assert pyramid.prunable
    assert {m.parameter for m in pyramid.members if m.role == "producer"} == {
        "backbone.fine.0.weight",
        "backbone.coarse.0.weight",
    }
    assert {m.parameter for m in pyramid.members if m.role == "consumer"} == {"head.tower.0.weight"}
    assert not tied(parts, "head.scores").prunable


def test_an_output_that_the_models_own_code_reads_stays() -> None:
    class Reads(Detector):
        def forward(self, images: list[Tensor], wanted: Tensor | None = None) -> Any:
            levels = self.backbone(looks_at_values(torch.stack(images)))
            extra = levels["fine"].mean() if self.training else 0.0  # in train mode only
            scores = [self.head(level)[0].mean() for level in levels.values()]
            return sum(scores) + extra

    parts, _ = prepared(Reads(), IMAGES, WANTED)
    assert not tied(parts, "backbone.fine.0").prunable
    assert tied(parts, "backbone.deep.0").prunable


@pytest.mark.parametrize("options", [{"macs": 0.5}, {"macs": 0.3, "kinds": ("rank", "channel", "kernel")}])
def test_a_compressed_model_trains_and_evaluates_and_comes_back_from_a_file(options: Any, tmp_path: Path) -> None:
    model = Detector()
    parts, _ = prepared(model, IMAGES, WANTED)
    if "kinds" in options:
        edp_fx.insert(parts.graph)
    dense = edp_fx.measure(parts.graph, parts.inputs).macs
    compressor = compressed(parts, lambda m: m(IMAGES, WANTED)["loss"], **options)
    assert compressor.max_rel_diff < 1e-5
    assert edp_fx.measure(parts.graph, parts.inputs).macs <= 1.05 * options["macs"] * dense
    assert model.head.tower[0] is not None and "loss" in model.train()(IMAGES, WANTED)
    model(IMAGES, WANTED)["loss"].backward()
    after = given(model, IMAGES, WANTED)

    edp_fx.save(parts.graph, tmp_path / "small", parts.inputs)
    fresh = Detector().eval()
    other = edp_fx.trace_parts(fresh, (IMAGES, WANTED))
    other.put(edp_fx.load(tmp_path / "small"))
    assert relative(after, given(fresh, IMAGES, WANTED)) < 1e-6
    assert sum(p.numel() for p in fresh.parameters()) == sum(p.numel() for p in model.parameters())
    fresh.train()(IMAGES, WANTED)["loss"].backward()

    whole = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert relative(after, given(whole, IMAGES, WANTED)) < 1e-6


def test_insertion_and_each_removal_leave_the_whole_model_as_it_was() -> None:
    model = Detector()
    parts, before = prepared(model, IMAGES, WANTED)
    edp_fx.insert(parts.graph)
    assert relative(before, given(model, IMAGES, WANTED)) < 1e-4
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)  # whatever changes is the compressor's doing
    compressor = Compressor(parts.graph, parts.inputs, macs=0.5, optimizer=optimizer, total_steps=12)
    sizes = set()
    for _ in range(12):
        model.train()(IMAGES, WANTED)["loss"].backward()
        optimizer.step()
        was = given(model, IMAGES, WANTED)
        if compressor.step():
            sizes.add(sum(p.numel() for p in model.parameters()))
    compressor.finish()
    assert len(sizes) > 1
    assert compressor.max_rel_diff < 1e-5
    assert len(was) == len(given(model, IMAGES, WANTED))


class Tracker(nn.Module):
    """One backbone on an exemplar and a search image, whose features are compared as kernels (SiamFC)."""

    def __init__(self, compare: nn.Module) -> None:
        super().__init__()
        self.backbone = nn.Sequential(block(3, 8), nn.MaxPool2d(2), block(8, 16), nn.Conv2d(16, 12, 3))
        self.compare = compare

    def forward(self, exemplar: Tensor, search: Tensor, label: Tensor | None = None) -> Tensor:
        response = self.compare(self.backbone(exemplar), self.backbone(looks_at_values(search)))
        return response if label is None else F.binary_cross_entropy_with_logits(response, label)


class EveryWithEvery(nn.Module):
    def forward(self, kernels: Tensor, features: Tensor) -> Tensor:
        return 0.1 * F.conv2d(features, kernels)


class EachWithItsOwn(nn.Module):
    def forward(self, kernels: Tensor, features: Tensor) -> Tensor:
        count, channels = features.shape[:2]
        rows = features.reshape(1, count * channels, *features.shape[2:])
        return 0.1 * F.conv2d(rows, kernels, groups=count).transpose(0, 1)


class ChannelByChannel(nn.Module):
    """As SiamRPN++ does, with a layer that mixes what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(12, 1, 1)

    def forward(self, kernels: Tensor, features: Tensor) -> Tensor:
        count, channels = features.shape[:2]
        rows = features.reshape(1, count * channels, *features.shape[2:])
        found = F.conv2d(rows, kernels.flatten(0, 1).unsqueeze(1), groups=count * channels)
        return self.mix(found.reshape(count, channels, *found.shape[2:]))


@pytest.mark.parametrize("kind", [EveryWithEvery, EachWithItsOwn, ChannelByChannel])
def test_a_part_that_is_used_twice_loses_the_channels_that_are_compared(kind: type[nn.Module]) -> None:
    model = Tracker(kind())
    exemplar, search = torch.randn(2, 3, 12, 12), torch.randn(2, 3, 24, 24)
    label = torch.rand_like(model(exemplar, search))
    parts, before = prepared(model, exemplar, search)
    assert parts.names == ("backbone", "compare")
    assert tied(parts, "backbone.3").prunable
    assert relative(before, given(model, exemplar, search)) < 1e-6
    compressor = compressed(parts, lambda m: m(exemplar, search, label), macs=0.4)
    assert compressor.max_rel_diff < 1e-5
    assert model.backbone[3].weight.shape[0] < 12
    with torch.no_grad():  # frame after frame with one exemplar, and of other sizes
        kernels = model.backbone(exemplar)
        assert model.compare(kernels, model.backbone(torch.randn(2, 3, 40, 40))).shape[-1] > 4


class Matcher(nn.Module):
    """As DETR: a backbone, a transformer on queries, heads, and a matching of what comes out that is no graph."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.project = nn.Sequential(block(3, 16), block(16, 16)), nn.Conv2d(16, 32, 1)
        self.queries = nn.Embedding(5, 32)
        self.encoder = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, dropout=0.1)
        self.decoder = nn.TransformerDecoderLayer(32, 4, 48, batch_first=True, dropout=0.1)
        self.classes = nn.Linear(32, 4)
        self.boxes = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, images: list[Tensor], targets: list[Tensor]) -> Any:
        features = self.project(self.backbone(torch.stack(images)))
        memory = self.encoder(features.flatten(2).transpose(1, 2))
        hidden = self.decoder(self.queries.weight.expand(len(images), -1, -1), memory)
        classes, boxes = self.classes(hidden), self.boxes(hidden).sigmoid()
        if not self.training:
            return {"classes": classes, "boxes": boxes}
        loss = classes.square().mean()
        for found, wanted in zip(boxes, targets):
            nearest = [min(range(len(found)), key=lambda i: float((found[i] - one).abs().sum())) for one in wanted]
            loss = loss + (found[nearest] - wanted).abs().mean()
        return {"loss": loss}


def test_a_transformer_with_queries_and_matching() -> None:
    model, targets = Matcher(), [torch.rand(2, 4), torch.rand(1, 4)]
    parts, before = prepared(model, IMAGES, targets)
    assert {"backbone", "encoder", "decoder", "classes", "boxes"} <= set(parts.names)
    assert relative(before, given(model, IMAGES, targets)) < 1e-5
    compressor = compressed(parts, lambda m: m(IMAGES, targets)["loss"], macs=0.7)
    assert compressor.max_rel_diff < 1e-5
    model.train()(IMAGES, targets)["loss"].backward()
    assert set(model.eval()(IMAGES, targets)) == {"classes", "boxes"}


def test_parts_by_name_and_what_cannot_be_one() -> None:
    parts, _ = prepared(Detector(), IMAGES, WANTED, parts=("head",))
    assert parts.names == ("head",)
    for names, message in {
        ("neck",): "no module 'neck'",
        ("rest",): "rest cannot be traced: it is never called",
    }.items():
        with pytest.raises(TraceError, match=message):
            edp_fx.trace_parts(Detector(), (IMAGES, WANTED), parts=names)


def test_what_was_not_traced_is_said() -> None:
    class Hooked(Detector):
        def __init__(self) -> None:
            super().__init__()
            self.head.register_forward_hook(lambda module, args, result: None)

    parts, _ = prepared(Hooked(), IMAGES, WANTED)
    assert [(one.node, one.reason) for one in parts.refused] == [("head", "it has a forward hook")]
    assert parts.names == ("backbone", "head.tower", "head.scores")
    assert "not traced: head: it has a forward hook" in str(parts)
    assert "backbone: 4 layers, read by head.tower" in str(parts)


def test_wrong_uses_say_what_to_do(tmp_path: Path) -> None:
    model = Detector()
    with pytest.raises(TraceError, match="does not run on the arguments"):
        edp_fx.trace_parts(model, (torch.stack(IMAGES), WANTED, 3))
    parts, _ = prepared(model, IMAGES, WANTED)
    with pytest.raises(TraceError, match="traced already"):
        edp_fx.trace_parts(model, (IMAGES, WANTED))
    with pytest.raises(TraceError, match="head is called in another way"):
        model.head(torch.randn(1, 12, 4, 4), scale=2.0)
    edp_fx.save(parts.graph, tmp_path / "whole", parts.inputs)
    other = edp_fx.trace_parts(Detector(), (IMAGES, WANTED), parts=("head",))
    with pytest.raises(CheckpointError, match="of other parts than head"):
        other.put(edp_fx.load(tmp_path / "whole"))
    fresh = Detector()
    fresh.head, fresh.rest = Head(4), nn.Linear(4, 4)
    classes = edp_fx.trace_parts(fresh, (IMAGES, WANTED))
    with pytest.raises(CheckpointError, match=r"a tensor of \(2, 5, 16, 16\) where .* reads one of \(2, 4, 16, 16\)"):
        classes.put(edp_fx.load(tmp_path / "whole"))
    fresh.train()(IMAGES, WANTED)["loss"].backward()


def test_modes_and_copies_stay_apart(tmp_path: Path) -> None:
    model = Detector()
    parts, before = prepared(model, IMAGES, WANTED)
    edp_fx.save(parts.graph, tmp_path / "whole", parts.inputs)
    fresh = Detector().train()
    fresh.backbone.stem[1].eval()  # its statistics stay, as those of pretrained backbones often do
    other = edp_fx.trace_parts(fresh, (IMAGES, WANTED))
    other.put(edp_fx.load(tmp_path / "whole"))
    assert fresh.training
    assert fresh.backbone.deep[1].training
    assert not fresh.backbone.stem[1].training
    kept = copy.deepcopy(fresh)
    compressed(other, lambda m: m(IMAGES, WANTED)["loss"], macs=0.5)
    assert relative(before, given(kept, IMAGES, WANTED)) < 1e-5
    with pytest.raises(TraceError, match=r"edp_fx\.save"):
        torch.save(fresh, tmp_path / "whole.pt")
