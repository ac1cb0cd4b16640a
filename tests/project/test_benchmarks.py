"""The comparison with peers: what is done is not done again, and the page copes with what there is."""

from __future__ import annotations

import copy
import json
import re
import statistics
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import edp_fx
from benchmarks import devices, document, summary, trained, without_training
from benchmarks.compression.jobs import runner
from benchmarks.compression.methods import METHODS
from benchmarks.compression.methods.edp import EDP
from benchmarks.compression.plan import CORE, TARGETS, best_peer, plan
from benchmarks.compression.results import Results, only_one
from benchmarks.compression.trial import Images, Setting, Task, Trial
from benchmarks.rows import read, read_lines
from benchmarks.widths import in_macs
from edp_fx.compressor import Method
from edp_fx.cost import POSITION, TRAFFIC, load_device
from edp_fx.data import ArrayDataset
from edp_fx.errors import EdpError

ROW = {
    "macs_ratio": 0.15,
    "params_ratio": 0.1,
    "accuracy": 0.9,
    "latency_ms": 1.0,
    "activation_bytes": 1000,
    "seconds": 3.0,
    "epochs": 10,
    "device": "cpu",
    "threads": 1,
    "precision": "fp32",
    "layout": "nhwc",
    "removing": None,
    "traffic": None,
    "position": None,
    "align": None,
    "versions": {"torch": "2"},
    "began": "2026-11-27T06:54",
}


@pytest.mark.slow
def test_a_device_ranks_what_was_measured_on_it_right() -> None:
    rows = [row for row in read(devices.ROWS) if row["rebuilt"] == "yes" and row["batch"] == "64"]
    rows = [row for row in rows if row["runtime"] == "compile" or "vit" in row["network"]]
    device = load_device("h200-fp16")
    told = devices.table(rows, devices.predicted(devices.launches(rows, device), device))
    assert "Of 6 speed-ups at batch 64, 6 are predicted within 15 %" in told
    assert "Of 12 pairs of rows" in told and "12 are in the right order" in told


def test_numbers_and_positions_in_macs_are_found_from_times() -> None:
    found = []
    for channels, side in ((4, 28), (16, 28), (32, 14), (64, 7), (96, 7)):
        macs, numbers, positions = 9 * channels**2 * side**2, channels * side**2, side**2
        found.append({"model": f"{channels}x{side}", "ms": str(2e-6 * (macs + 50 * numbers + 1500 * positions))})
    assert in_macs(found) == pytest.approx((50, 1500), rel=1e-6)


def test_the_defaults_are_the_setting_with_the_best_committed_rows() -> None:
    """Of the settings that have three seeds of the core network to every target on every device, in what it is trained
    in today. Which kinds a row's method may remove is known by its name."""
    cells: dict[Any, dict[Any, dict[int, float]]] = {}
    files = sorted(document.RESULTS.glob("compression*.jsonl"))
    for path in files:
        for row in read_lines(path):
            if (
                row["network"] == CORE
                and row["method"] in EDP
                and (row["precision"], row["layout"]) == ("bf16", "nhwc")
            ):
                kinds = EDP[row["method"]].get("kinds")
                setting = (kinds, tuple(row["removing"]), row["traffic"], row["position"], row["align"] or 1)
                cell = cells.setdefault(setting, {}).setdefault((path.name, row["target"]), {})
                cell[row["seed"]] = row["accuracy"]  # of a seed measured again the last counts
    wanted = {(path.name, target) for path in files for target in TARGETS}
    means = {
        setting: statistics.mean(statistics.mean(found[cell].values()) for cell in wanted)
        for setting, found in cells.items()
        if all(len(found.get(cell, ())) >= 3 for cell in wanted)
    }
    default = Method()
    assert max(means, key=means.__getitem__) == (
        default.kinds,
        (default.start, default.end),
        TRAFFIC,
        POSITION,
        default.align,
    )
    assert len(means) >= 2  # it was compared


def test_a_line_cut_off_is_dropped_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    task = Task("resnet20", "thin", 0.15, 0)
    Results(path).add(task, ROW)
    with open(path, "a") as file:
        file.write('{"network": "res')
    results = Results(path)
    assert set(results.rows) == {task}
    results.add(Task("resnet20", "dense", 1.0, 0), ROW)
    assert [json.loads(line)["method"] for line in path.read_text().splitlines()] == ["thin", "dense"]
    path.write_text("nonsense\n")
    with pytest.raises(EdpError, match=r"results.jsonl:1: not a line of results"):
        Results(path)


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with only_one(path), pytest.raises(EdpError, match="another process"), only_one(path):
        pass


def test_the_plan_has_every_method_and_repeats_the_better_peer() -> None:
    tasks = list(chain(*plan({})))
    assert len(set(tasks)) == len(tasks)
    assert {task.method for task in tasks} == set(METHODS)
    rows = {Task("resnet20", "tp-taylor", 0.15, 0): {"accuracy": 0.5}}
    assert best_peer(rows, 0.15) == "tp-taylor"
    assert Task("resnet20", "tp-taylor", 0.15, 2) in set(chain(*plan(rows)))


@pytest.mark.parametrize("method", ["thin", "edp-budget", "edp-channels", "tp-taylor", "svd", "slimming"])
def test_a_method_ends_under_its_target(method: str) -> None:
    images = torch.rand(256, 1, 28, 28)
    data = ArrayDataset(images, torch.arange(256) % 10, mean=(0.5,), std=(0.3,))
    trial = Trial(Task("resnet20", method, 0.3, 0), Setting(epochs=2), Images(data, data))
    assert 0.29 <= trial.macs(METHODS[method](trial)) / trial.dense.macs <= 0.3


def test_the_page_is_made_from_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "DOCUMENT", tmp_path / "page.md")
    monkeypatch.setattr(document, "PLOTS", tmp_path / "plots")
    assert document.document(tmp_path).startswith("# Benchmark tables")
    for seed in (0, 1):
        row = {**ROW, "accuracy": 0.9 - 0.1 * seed}
        Results(tmp_path / "compression.jsonl").add(Task("resnet20", "thin", 0.15, seed), row)
    for seed, removing in enumerate(([0.05, 0.25], [0.12, 0.5])):
        row = {**ROW, "removing": removing, "seconds": 6.0 + seed}
        Results(tmp_path / "compression.jsonl").add(Task("resnet20", "tp-taylor", 0.15, seed), row)
    edp = {**ROW, "removing": [0.05, 0.25]}
    settings = ((64.0, 0.0, 4), (64.0, 1280.0, 4), (320.0, 0.0, 4), (TRAFFIC, POSITION, 8))
    for seed, (traffic, position, align) in enumerate(settings):
        row = {**edp, "traffic": traffic, "position": position, "align": align, "began": "2026-11-26T06:54"}
        Results(tmp_path / "compression.jsonl").add(Task("resnet20", "edp-budget", 0.15, seed), row)
    # measured again beside other runs: a second row of the same seed, which is what counts
    again = {**ROW, "seconds": 12.0, "began": "2026-11-28T06:54"}
    Results(tmp_path / "compression.jsonl").add(Task("resnet20", "thin", 0.15, 1), again)
    row = {**again, "removing": [0.05, 0.25]}
    Results(tmp_path / "compression.jsonl").add(Task("resnet20", "tp-taylor", 0.15, 0), row)
    (tmp_path / "analysis.csv").write_text("model,nodes,seconds,proved_seconds\nresnet50,200,0.9,3.0\n")
    page = document.document(tmp_path)
    assert re.search(r"\b7 of the [0-9]+ runs planned in `compression.jsonl`, 10 in all", page)
    assert re.search(r"\| `thin` .*\| 2 .*\| 90.00 ± 0.00 .*\| 1.00x +\|", page)
    assert re.search(r"\| `tp-taylor` +\| 5% to 25% +\| +\| +\| +\| 1 .*\| 12 +\| 1.50x +\|", page)
    assert re.search(r"\| `tp-taylor` +\| 12% to 50% +\| +\| +\| +\| 1 .*\| 7 +\| 2.33x +\|", page)
    today, before = page.split("### Settings of before")
    assert re.search(
        rf"\| `edp-budget` +\| 5% to 25% +\| {TRAFFIC:.0f} +\| {POSITION:.0f} +\| 8 +\| 1 .*\| 3 +\| +\|", today
    )
    assert today.count("| `edp-budget`") == 1
    assert re.search(r"\| `edp-budget` +\| 5% to 25% +\| 64 +\| 0 +\| 4 +\| 1 ", before)
    assert re.search(r"\| `edp-budget` +\| 5% to 25% +\| 64 +\| 1280 +\| 4 +\| 1 ", before)
    assert re.search(r"\| `edp-budget` +\| 5% to 25% +\| 320 +\| 0 +\| 4 +\| 1 ", before)
    assert "90.00 ± 0.00" in page
    assert "| resnet50 | 200     | 0.9" in page
    assert (tmp_path / "plots" / "compression.svg").exists()
    said = summary.summary(tmp_path)
    expected = r"\| resnet20 +\| 0.15 +\| fp32, NHWC +\| +\| 90.00 ± 0.00 +\| 90.00 +\| 90.00 \(`tp-taylor`\)"
    assert re.search(expected, said)


def test_the_page_says_what_is_lost_without_training(tmp_path: Path) -> None:
    row = {"model": "lite0", "macs_ratio": 0.8, "params_ratio": 0.9, "cpu_seconds": 90.0, "images": 256}
    found = [("dense", 1.0, 0, 0.88), ("dense", 1.0, 1, 0.86), ("one-shot", 0.8, 0, 0.84), ("one-shot", 0.8, 1, 0.83)]
    found += [("tp-norm", 0.8, 1, 0.5)]
    lines = [{**row, "method": a, "target": b, "half": c, "accuracy": d} for a, b, c, d in found]
    (tmp_path / "without_training.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = document.document(tmp_path)
    assert re.search(r"\| `one-shot` +\| 0.8 +\| 2 +\| 0.800 .*\| 83.5 +\| -3.5 +\| 90 ", page)
    assert re.search(r"\| `tp-norm` +\| 0.8 +\| 1 .*\| 50.0 +\| -36.0 ", page)
    assert re.search(r"\| `dense` +\| 1 +\| 2 .*\| 87.0 +\| +\|", page)


def test_the_page_says_what_is_lost_from_trained_weights(tmp_path: Path) -> None:
    row = {"network": "resnet20", "macs_ratio": 0.3, "params_ratio": 0.4, "seconds": 90.0, "epochs": 10}
    found = [("continued+teacher", 1.0, 0, 0.8), ("continued+teacher", 1.0, 1, 0.82), ("trained+teacher", 0.3, 0, 0.8)]
    found += [("trained+teacher", 0.3, 1, 0.79), ("tp-taylor", 0.3, 0, 0.7), ("svd+teacher", 0.3, 0, 0.75)]
    lines = [{**row, "method": a, "target": b, "seed": c, "accuracy": d} for a, b, c, d in found]
    (tmp_path / "trained.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert re.search(
        r"\| resnet20 +\| `trained\+teacher` .*\| 2 .*\| 79.5 +\| 0.7 +\| -1.5 ", document.document(tmp_path)
    )
    expected = r"\| 0.3 +\| 81.00 ± 1.41 +\| 79.50 ± 0.71 +\| 75.00 \(`svd\+teacher`\)"
    assert re.search(expected, summary.summary(tmp_path))


def test_the_page_compares_from_random_weights_on_one_schedule(tmp_path: Path) -> None:
    row = {"network": "resnet20", "macs_ratio": 0.3, "params_ratio": 0.4, "seconds": 90.0, "epochs": 20}
    late = "+start=0.3+end=0.5"
    found = [("dense", 1.0, 0, 0.8), ("scratch", 0.3, 0, 0.6), (f"scratch{late}", 0.3, 0, 0.7)]
    found += [(f"scratch{late}", 0.3, 1, 0.72), (f"tp-taylor{late}", 0.3, 0, 0.65)]
    lines = [{**row, "method": a, "target": b, "seed": c, "accuracy": d} for a, b, c, d in found]
    (tmp_path / "photographs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = summary.summary(tmp_path)
    assert re.search(r"\| 0.3 +\| from 0.3 to 0.5 of the run +\| 80.00 +\| 71.00 ± 1.41 +\| 65.00 ", page)
    assert "from 0.05" not in page
    (tmp_path / "photographs.jsonl").open("a").write(json.dumps({**lines[4], "method": "tp-taylor"}) + "\n")
    assert "from 0.05 to 0.25 of the run" in summary.summary(tmp_path)


def test_a_method_of_the_table_from_trained_weights_says_what_is_changed() -> None:
    assert trained.parts("tp-taylor") == ("tp-taylor", False, {})
    assert trained.parts("trained+teacher+align=8+lr=0.1") == ("trained", True, {"align": "8", "lr": "0.1"})
    images = torch.rand(256, 3, 32, 32)
    data = ArrayDataset(images, torch.arange(256) % 10, mean=(0.5,) * 3, std=(0.3,) * 3)
    dense = trained.MAKERS["resnet20"]()
    for method, rate, align in (("trained+teacher+align=8", 0.05, 8), ("trained+lr=0.2", 0.2, 1), ("thin", 0.1, 1)):
        task = Task("resnet20", method, 0.3, 0)
        made = trained.TrainedTrial(task, trained.Setting(3, 2, None), trained.Photographs(data, data), dense)
        assert (made.recipe.peak_lr, made.method.align, made.teacher is not None) == (rate, align, "teacher" in method)
        assert made.recipe.epochs == (5 if method == "thin" else 2)


def test_torch_pruning_is_given_the_same_floor_and_statistics() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10)).eval()
    half = without_training.Half(torch.randn(64, 3, 8, 8) + 3, torch.arange(64) % 10)
    for method in ("tp-norm", "tp-taylor", "norm", "one-shot"):
        small = without_training.METHODS[method](copy.deepcopy(model), half, 0.7)
        assert 0.4 < edp_fx.measure(small, half.images[:1]).macs / edp_fx.measure(model, half.images[:1]).macs <= 0.7
        if method.startswith("tp"):
            conv, norm = small[0], small[1]
            assert torch.allclose(norm.running_mean, conv(half.images).mean((0, 2, 3)), atol=1e-4)


@pytest.mark.parametrize("jobs", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.usefixtures("fashion_mnist")
def test_a_run_that_fails_does_not_take_the_others_with_it(jobs: int) -> None:
    setting = Setting(epochs=1)
    tasks = [Task("resnet20", "edp-budget", 1e-4, 0), Task("resnet20", "thin", 0.3, 0)]
    with runner(setting, jobs) as ended:
        rows = dict(ended(tasks))
    assert "cannot be reached" in str(rows[tasks[0]])
    assert 0.29 <= rows[tasks[1]]["macs_ratio"] <= 0.3
    assert (rows[tasks[1]]["latency_ms"] is None) == (jobs > 1)
