"""Whole runs on a small network: budget, equality, resuming, optimisers, averages, failures."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import edp_fx
from edp_fx.compressor import Compressor, parameter_groups
from edp_fx.data import ArrayDataset, make_loader
from edp_fx.errors import BudgetError, CheckpointError, EdpError, TrainingError
from edp_fx.inputs import randomize_
from edp_fx.train import Recipe, Teacher, Trainer, evaluate
from edp_fx.train import state as state_module

SIDE = 12


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.short = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.short(x))


class Net(nn.Module):
    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(3, 16), nn.MaxPool2d(2), Block(16, 24))
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.blocks(x).mean((2, 3))))


def make_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = Net()
    randomize_(net, seed)
    return net


Loaders = Callable[..., tuple[DataLoader[Any], DataLoader[Any]]]


@pytest.fixture(scope="module")
def loaders() -> Loaders:
    """Four classes told apart by which quarter of the picture is bright."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(160) % 4
    images = 0.3 * torch.rand(160, 1, SIDE, SIDE, generator=generator)
    half = SIDE // 2
    for image, label in zip(images, labels):
        top, left = half * (int(label) // 2), half * (int(label) % 2)
        image[:, top : top + half, left : left + half] += 0.5

    def make(shift: int = 1) -> tuple[DataLoader[Any], DataLoader[Any]]:
        train = ArrayDataset(images[:128], labels[:128], mean=(0.3,), std=(0.25,), shift=shift)
        test = ArrayDataset(images[128:], labels[128:], mean=(0.3,), std=(0.25,))
        return make_loader(train, 16, train=True), make_loader(test, 32, train=False)

    return make


INPUTS = (torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)),)


def share_of(network: nn.Module) -> float:
    return edp_fx.measure(network, INPUTS).macs / edp_fx.measure(make_net(), INPUTS).macs


# in small pieces, and late: 64 steps are few
PAIRS = {"kinds": ("rank", "channel"), "align": 1, "pairs": "spectral", "start": 0.12, "end": 0.5}


@pytest.mark.parametrize("changes", [PAIRS, {"align": 1}])
@pytest.mark.parametrize("share", [0.7, 0.3])
def test_a_run_ends_just_under_its_budget_and_learns(loaders: Loaders, share: float, changes: dict[str, Any]) -> None:
    train, test = loaders()
    network = make_net()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    compact = edp_fx.compress(network, train, epochs=8, macs=share, val_loader=test, **changes)
    assert 0.97 * share <= share_of(compact) <= share
    assert evaluate(compact, test).accuracy >= 0.9
    record = compact.meta["edp_fx.run"]
    assert record["max_rel_diff"] <= 1e-5
    assert record["macs"] == pytest.approx(share_of(compact), rel=1e-9)
    forms = {layer["form"] for layer in record["layers"]}
    assert forms <= ({"plain", "pair", "merged"} if "kinds" in changes else {"plain", "separate"})
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("importance", ["norm", "singular"])
def test_other_measures_of_importance_meet_the_budget_too(loaders: Loaders, importance: str) -> None:
    compact = edp_fx.compress(make_net(), loaders()[0], epochs=2, macs=0.5, importance=importance, **PAIRS)
    assert 0.45 <= share_of(compact) <= 0.5
    assert compact.meta["edp_fx.run"]["max_rel_diff"] <= 1e-5


def test_params_budget(loaders: Loaders) -> None:
    compact = edp_fx.compress(make_net(), loaders()[0], epochs=3, params=0.4, **PAIRS)
    dense = sum(parameter.numel() for parameter in make_net().parameters())
    assert 0.36 <= sum(parameter.numel() for parameter in compact.parameters()) / dense <= 0.4


def test_pruning_and_merging_again_changes_nothing(loaders: Loaders) -> None:
    compact = edp_fx.compress(make_net(), loaders()[0], epochs=3, macs=0.4).eval()
    again = edp_fx.prune_and_merge(compact, INPUTS).eval()
    images = torch.randn(5, 3, SIDE, SIDE).to(next(compact.parameters()).device)
    with torch.no_grad():
        assert torch.allclose(again(images), compact(images), rtol=1e-5, atol=1e-6)
    assert share_of(again) == pytest.approx(share_of(compact))


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True),
        lambda groups: torch.optim.AdamW(groups, lr=3e-3),
        lambda groups: torch.optim.RMSprop(groups, lr=1e-3, momentum=0.5),
    ],
)
def test_three_lines_in_ones_own_loop(loaders: Loaders, make_optimizer: Any) -> None:
    train, test = loaders()
    model = edp_fx.insert(edp_fx.trace(make_net(), INPUTS))
    optimizer = make_optimizer(parameter_groups(model, 1e-4))
    epochs = 6
    compressor = Compressor(
        model, INPUTS, macs=0.5, kinds=("rank", "channel"), optimizer=optimizer, total_steps=epochs * len(train)
    )
    shapes = set()
    for epoch in range(epochs):
        train.sampler.set_epoch(epoch)
        for images, labels in train:
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            compressor.step()
            shapes.add(sum(parameter.numel() for parameter in model.parameters()))
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in model.parameters()}
    for parameter in model.parameters():
        for value in optimizer.state[parameter].values():
            assert not isinstance(value, torch.Tensor) or value.dim() == 0 or value.shape == parameter.shape
    compact = compressor.finish()
    assert len(shapes) > 2  # it shrank on the way
    assert compact is model
    assert share_of(compact) <= 0.5
    assert evaluate(compact, test).accuracy >= 0.9


def test_optimizer_state_is_sliced_along_with_the_weights(loaders: Loaders) -> None:
    train, _ = loaders()
    model = edp_fx.insert(edp_fx.trace(make_net(), INPUTS))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    compressor = Compressor(model, INPUTS, macs=0.5, kinds=("rank", "channel"), optimizer=optimizer, total_steps=16)
    checked = 0
    for images, labels in train:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        # a momentum that says where in its parameter it lies
        for parameter in model.parameters():
            optimizer.state[parameter]["momentum_buffer"] = parameter.detach().clone()
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        if compressor.step():
            for name, parameter in model.named_parameters():
                state = optimizer.state[parameter].get("momentum_buffer")
                if state is not None and name in before and before[name].shape != parameter.shape:
                    live = parameter != 0  # what faded differs from the copy made before the step
                    same = torch.isclose(state, parameter, rtol=1e-3, atol=1e-6) & live
                    checked += int(same.sum()) > 0.5 * int(live.sum())
    assert checked >= 3


def test_a_compiled_network_follows_the_changes_of_shape(loaders: Loaders) -> None:
    train, _ = loaders()
    model = edp_fx.insert(edp_fx.trace(make_net(), INPUTS))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    compressor = Compressor(model, INPUTS, macs=0.5, kinds=("rank", "channel"), optimizer=optimizer, total_steps=8)
    compiled = torch.compile(model, backend="eager")
    changed = 0
    for images, labels in train:
        optimizer.zero_grad()
        F.cross_entropy(compiled(images), labels).backward()
        optimizer.step()
        if compressor.step():
            changed += 1
            model.eval()
            assert torch.equal(compiled(images), model(images))
            model.train()
    assert changed


def final_state(
    loaders: Loaders, directory: Path, epochs: int = 4, stop_after: int | None = None, **options: Any
) -> dict[str, Any] | None:
    train, test = loaders()
    recipe = Recipe(epochs=epochs, seed=3, **options)
    gm = edp_fx.insert(edp_fx.trace(make_net(), INPUTS))

    def make(graph: fx.GraphModule, optimizer: torch.optim.Optimizer, total: int) -> Any:
        return Compressor(graph, INPUTS, macs=0.4, kinds=("rank", "channel"), optimizer=optimizer, total_steps=total)

    trainer = Trainer(gm, train, recipe, val_loader=test, make_compressor=make, directory=directory)
    if stop_after is not None:
        steps = iter(range(10**6))
        original = trainer._optimizer_step

        def interrupted() -> Any:
            if next(steps) == stop_after:
                raise KeyboardInterrupt
            original()

        trainer._optimizer_step = interrupted
        with pytest.raises(KeyboardInterrupt):
            trainer.run(resume=True)
        return None
    return trainer.run(resume=True).model.state_dict()


def test_resuming_with_another_budget_is_refused(loaders: Loaders, tmp_path: Path) -> None:
    train, _ = loaders()
    edp_fx.compress(make_net(), train, epochs=2, macs=0.5, directory=tmp_path)
    with pytest.raises(CheckpointError, match=r"macs=0.5.*macs=0.4"):
        edp_fx.compress(make_net(), train, epochs=2, macs=0.4, directory=tmp_path, resume=True)


@pytest.mark.parametrize("options", [{}, {"ema": 0.9}, {"mixed_precision": "fp16"}])
def test_interrupted_runs_resume_bit_for_bit(loaders: Loaders, tmp_path: Path, options: dict[str, Any]) -> None:
    expected = final_state(loaders, tmp_path / "whole", **options)
    for stop_after in (3, 11, 5):  # within the first epoch; in the second; in the third, after resuming
        final_state(loaders, tmp_path / "parts", stop_after=stop_after, **options)
    resumed = final_state(loaders, tmp_path / "parts", **options)
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(resumed[key], expected[key]) for key in expected)
    steps = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    losses = [record["step"] for record in steps if "loss" in record]
    assert losses == sorted(set(losses))
    assert {record.get("event") for record in steps} >= {"decision", "shrink"}


def test_a_seed_reproduces_a_run_and_another_does_not(loaders: Loaders) -> None:
    def weights(seed: int) -> torch.Tensor:
        compact = edp_fx.compress(make_net(), loaders()[0], macs=0.5, recipe=Recipe(epochs=2, seed=seed))
        return torch.cat([parameter.flatten() for parameter in compact.parameters()])

    first = weights(1)
    assert torch.equal(first, weights(1))
    other = weights(2)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_gradient_accumulation_makes_the_steps_of_larger_batches(loaders: Loaders) -> None:
    compact = edp_fx.compress(make_net(), loaders()[0], macs=0.5, recipe=Recipe(epochs=4, accumulate=3))
    assert share_of(compact) <= 0.5
    last = compact.meta["edp_fx.run"]["events"][-1]["step"]
    assert last <= 4 * 3  # eight batches an epoch make three steps


def test_runs_of_one_process_may_differ_in_precision(loaders: Loaders) -> None:
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        seen: set[torch.dtype] = set()
        net = edp_fx.trace(make_net(), INPUTS)
        net.get_submodule("head").register_forward_hook(lambda *call, seen=seen: seen.add(call[-1].dtype))
        Trainer(net, loaders()[0], Recipe(epochs=1, mixed_precision=precision)).run()
        assert seen == {dtype}
    with pytest.raises(TrainingError, match="mixed_precision=half: give one of fp32, bf16, fp16"):
        Recipe(epochs=1, mixed_precision="half")


def test_averaged_weights_shrink_along_and_become_the_result(loaders: Loaders) -> None:
    train, test = loaders()
    compact = edp_fx.compress(make_net(), train, macs=0.4, recipe=Recipe(epochs=8, ema=0.8))
    assert share_of(compact) <= 0.4
    assert evaluate(compact, test).accuracy >= 0.8


def test_distillation_uses_the_teacher(loaders: Loaders) -> None:
    train, _ = loaders()
    teacher = make_net(5)
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    edp_fx.compress(make_net(), train, macs=0.5, epochs=2, teacher=teacher, distill=0.3)
    assert len(calls) == 2 * len(train)
    assert teacher.training  # a copy taught


def test_a_trained_network_teaches_itself(loaders: Loaders, monkeypatch: pytest.MonkeyPatch) -> None:
    train, _ = loaders()
    seen: list[Any] = []
    original = Teacher.outputs

    def outputs(self: Teacher, inputs: tuple[torch.Tensor, ...]) -> Any:
        seen.append((type(self.network), self.weight, self.network.training))
        return original(self, inputs)

    monkeypatch.setattr(Teacher, "outputs", outputs)
    edp_fx.compress(make_net(), train, method="trained", macs=0.5, epochs=1)
    assert seen == [(Net, 0.9, False)] * len(train)
    seen.clear()
    edp_fx.compress(make_net(), train, teacher="self", macs=0.5, epochs=1)
    assert len(seen) == len(train)
    seen.clear()
    edp_fx.compress(make_net(), train, macs=0.5, epochs=1)
    assert not seen


def test_a_trained_network_learns_at_a_lower_rate(loaders: Loaders) -> None:
    train, _ = loaders()
    for options, rate in (({"method": "trained"}, 1e-3), ({"method": "one-shot"}, 2e-4), ({}, None)):
        small = edp_fx.compress(make_net(), train, macs=0.5, epochs=1, **options)
        assert small.meta["edp_fx.run"]["recipe"]["lr"] == rate
    given = edp_fx.compress(make_net(), train, method="trained", macs=0.5, recipe=Recipe(epochs=1, lr=0.01))
    assert given.meta["edp_fx.run"]["recipe"]["lr"] == 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "say how long to train"),
        ({"epochs": 1, "recipe": Recipe(epochs=1)}, "not both"),
        ({"epochs": 1, "teacher": None, "temperature": 3.0}, "temperature applies where there is a teacher"),
        ({"epochs": 1, "runtime": object()}, "a budget of latency only"),
        ({"epochs": 1, "aling": 4}, "did you mean align"),
        ({"epochs": 0, "end": 0.5}, "end does not apply"),
        ({"epochs": 0, "kinds": ("kernel",)}, "nothing weighs kernel"),
        ({"epochs": 0, "method": "scratch"}, "without training"),
        ({"epochs": 0, "method": "truncate", "pairs": "identity"}, "must start spectral"),
        ({"epochs": 0, "importance": "taylor"}, "take the importance norm, singular"),
        ({"recipe": Recipe(epochs=0, ema=0.9)}, "ema applies to training only"),
        ({"epochs": 0, "directory": "out"}, "directory applies to training only"),
        ({"epochs": 1, "data": [{"x": torch.ones(2, 3, 12, 12)}]}, "the loader gives a dict"),
        ({"epochs": 1, "data": iter([])}, "the loader gives nothing"),
        ({"epochs": 1, "data": (n for n in [1]), "example_inputs": torch.ones(2, 3, 12, 12)}, "has no length"),
        ({"epochs": 1, "data": [(torch.ones(2, 3, 12, 12), torch.tensor([1, 4]))]}, "label 4 in the data, but"),
        ({"epochs": 1, "data": [(torch.ones(2, 3, 12, 12), torch.ones(2))]}, "give the class of each image"),
    ],
)
def test_a_wrong_call_gets_one_line(loaders: Loaders, options: dict[str, Any], message: str) -> None:
    given = {"data": loaders()[0], "macs": 0.5, **options}
    with pytest.raises(EdpError) as caught:
        edp_fx.compress(make_net(), **given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pairs_come_only_where_ranks_are_needed(loaders: Loaders) -> None:
    train, _ = loaders()
    dense = edp_fx.compress(make_net(), train, epochs=1, macs=0.5)
    assert "rank" not in dense.meta["edp_fx.run"]["kinds"]
    layers = [nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 4)]
    # channels that a norm mixes stay: ranks are all that can go
    needed = edp_fx.compress(nn.Sequential(*layers), train, epochs=1, macs=0.6)
    assert "rank" in needed.meta["edp_fx.run"]["kinds"]
    macs = edp_fx.measure(needed, INPUTS).macs
    assert macs <= 0.6 * edp_fx.measure(nn.Sequential(*layers), INPUTS).macs


def test_lambda_policy_reaches_exact_zeros_without_a_budget(loaders: Loaders) -> None:
    train, _ = loaders()
    model = edp_fx.insert(edp_fx.trace(make_net(), INPUTS))
    optimizer = torch.optim.SGD(parameter_groups(model, 5e-4), lr=0.05, momentum=0.9)
    compressor = Compressor(
        model,
        INPUTS,
        optimizer=optimizer,
        total_steps=40,
        policy="lambda",
        kinds=("rank", "channel"),
        align=1,
        strength=0.1,
    )
    for _ in range(5):
        for images, labels in train:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            compressor.step()
    model.eval()
    images = torch.randn(4, 3, SIDE, SIDE)
    before = model(images)
    compact = compressor.finish()
    assert share_of(compact) < 0.9
    assert torch.allclose(compact(images), before, rtol=1e-5, atol=1e-6)


def test_rows_of_the_basis_are_balanced_without_changing_the_product() -> None:
    from edp_fx.compressor.proximal import balance
    from edp_fx.pairs import Pair

    pair = Pair.from_layer(nn.Conv2d(6, 8, 3))
    optimizer = torch.optim.SGD(pair.parameters(), lr=0.1, momentum=0.9)
    pair(torch.randn(2, 6, 5, 5)).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        pair.basis.weight.mul_(torch.rand(8, 1, 1, 1) + 0.5)
    before = pair.effective_weight().detach().clone()
    balance(pair, optimizer)
    assert torch.allclose(pair.effective_weight(), before, atol=1e-6)
    assert torch.allclose(pair.basis.weight.flatten(1).norm(dim=1), torch.ones(8), atol=1e-5)


def test_zero_epochs_truncate_to_the_budget(loaders: Loaders) -> None:
    train, test = loaders()
    trained = edp_fx.compress(make_net(), train, epochs=8, macs=1.0)
    plain = copy.deepcopy(make_net())
    whole = Trainer(edp_fx.trace(plain, INPUTS), train, Recipe(epochs=8)).run().model.eval()
    cut = edp_fx.compress(whole, train, epochs=0, macs=0.6, method="truncate", example_inputs=INPUTS).eval()
    assert 0.55 <= share_of(cut) <= 0.6
    images = torch.cat([batch for batch, _ in test]).to(next(whole.parameters()).device)
    blind = edp_fx.compress(whole, None, epochs=0, macs=0.6, example_inputs=INPUTS).eval()
    with torch.no_grad():
        error = (cut(images) - whole(images)).norm()
        blind_error = (blind(images) - whole(images)).norm()
    assert error < blind_error  # knowing the inputs helps
    assert trained is not None


def test_budget_that_cannot_be_reached_says_the_least_that_can(loaders: Loaders) -> None:
    with pytest.raises(BudgetError, match="the least that can is"):
        edp_fx.compress(make_net(), loaders()[0], epochs=1, macs=0.0001)


def test_nan_loss_stops_with_the_last_checkpoint_intact(loaders: Loaders, tmp_path: Path) -> None:
    train, _ = loaders()
    edp_fx.compress(make_net(), train, epochs=1, macs=0.5, directory=tmp_path)
    good = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(TrainingError, match=r"loss became (nan|inf).*checkpoint"):
        edp_fx.compress(make_net(), train, macs=0.5, directory=tmp_path, recipe=Recipe(epochs=2, lr=1e12, clip_grad=0))
    assert (tmp_path / "checkpoint.pt").read_bytes() == good


def test_failing_loader_is_named(loaders: Loaders) -> None:
    class Failing:
        sampler = None

        def __len__(self) -> int:
            return 4

        def __iter__(self) -> Iterator[Any]:
            yield torch.randn(4, 3, SIDE, SIDE), torch.zeros(4, dtype=torch.long)
            raise OSError("cannot read picture.png")

    with pytest.raises(TrainingError, match=r"failed in epoch 1, step 1: OSError: cannot read picture.png"):
        edp_fx.compress(make_net(), Failing(), epochs=1, macs=0.5)


def test_full_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    state_module.save_state({"progress": {"epoch": 1, "step": 2}}, path)
    good = path.read_bytes()

    def full(state: Any, file: Any) -> Any:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state_module.torch, "save", full)
    with pytest.raises(TrainingError, match=r"No space left.*intact"):
        state_module.save_state({"progress": {}}, path)
    assert path.read_bytes() == good
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("chosen", ["tf32", "ieee"])
def test_outputs_are_compared_in_whole_float32_whatever_was_chosen(chosen: str) -> None:
    from edp_fx.validation.samples import outputs

    backends = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    before = [backend.fp32_precision for backend in backends]
    seen: list[str] = []
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda *_: seen.extend(backend.fp32_precision for backend in backends))
    try:
        for backend in backends:
            backend.fp32_precision = chosen
        outputs(layer, (torch.ones(1, 2),))
        assert seen == ["ieee", "ieee"]
        assert [backend.fp32_precision for backend in backends] == [chosen, chosen]
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
