"""From a model to a pruned network: edp_fx and Torch-Pruning on the smallest model of every timm family.

    python -m benchmarks.structural_pruning [--models NAME,…] [--limit 60] [--out FILE.jsonl]

Four tools, each told to remove half of the channels by magnitude and nothing else:

- edp_fx: trace, analyze with its proof, prune;
- edp_fx_unproved: the same with ``check=False``, as no other tool compares what it removes with masked execution;
- torch_pruning: BasePruner as it stands, the layers that give the classes ignored;
- torch_pruning_hints: the same with the heads of fused qkv layers declared, and the attention modules' sizes set
  afterwards, as its authors do for timm.

A tool succeeds on a model when the pruned network runs, keeps its output shape, and has lost at least 30% of its MACs.
Each tool has a process of its own for each model, and a time limit for each attempt; those that succeed repeat it in
turns, and medians are given: wall clock and processor time on one thread. Rows in the file are kept.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import edp_fx
from benchmarks.rows import read_lines
from edp_fx.cost import measure
from edp_fx.coverage.catalog import choose
from edp_fx.coverage.subject import Subject, prepare

FELL = 0.7  # of the MACs may be left
TIMES = ("seconds", "cpu_seconds")
Pruned = Callable[[nn.Module, Tensor], nn.Module]


def by_edp_fx(model: nn.Module, images: Tensor, check: bool = True) -> nn.Module:
    """Half of every group's elements, those of the smallest weights, removed."""
    from edp_fx.passes.prune import prune

    gm = edp_fx.trace(model, images)
    graph = edp_fx.analyze(gm, images, check=check)
    weights = {**dict(gm.named_parameters()), **dict(gm.named_buffers())}
    keep = {}
    for group in graph.prunable:
        energy = np.zeros(group.size)
        for member in group.members:
            if member.role not in ("producer", "consumer"):
                continue
            weight = weights[member.parameter].detach()
            squares = weight.square().sum([a for a in range(weight.ndim) if a != member.axis]).numpy()
            inside = member.owner >= 0
            energy += np.bincount(member.owner[inside], squares[inside], minlength=group.size)
        kept = np.zeros(group.size, dtype=bool)
        kept[np.argsort(-energy, kind="stable")[: -(-group.size // 2)]] = True
        keep[group.id] = kept
    return prune(gm, graph, keep).graph_module


def by_edp_fx_unproved(model: nn.Module, images: Tensor) -> nn.Module:
    """The same, what the analysis says not compared with masked execution."""
    return by_edp_fx(model, images, check=False)


def by_torch_pruning(model: nn.Module, images: Tensor) -> nn.Module:
    """BasePruner with group magnitudes, half of everything but what gives the classes."""
    return _torch_pruning(model, images, {})


def by_torch_pruning_with_hints(model: nn.Module, images: Tensor) -> nn.Module:
    """The same with the heads of attention modules declared."""
    attention = [
        m for m in model.modules() if isinstance(getattr(m, "qkv", None), nn.Linear) and hasattr(m, "num_heads")
    ]
    pruned = _torch_pruning(model, images, {m.qkv: m.num_heads for m in attention})
    for module in attention:
        width = module.qkv.out_features // 3
        for name, size in (("head_dim", width // module.num_heads), ("attn_dim", width), ("dim", width)):
            if hasattr(module, name):
                setattr(module, name, size)
    return pruned


def _torch_pruning(model: nn.Module, images: Tensor, heads: dict[nn.Module, int]) -> nn.Module:
    import torch_pruning as tp

    with torch.no_grad():
        classes = model(images).shape[-1]
    last = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    last += [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.out_channels == classes]
    pruner = tp.pruner.BasePruner(
        model,
        images,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=last,
        num_heads=heads,
    )
    pruner.step()
    return model


TOOLS: dict[str, Pruned] = {
    "edp_fx": by_edp_fx,
    "edp_fx_unproved": by_edp_fx_unproved,
    "torch_pruning": by_torch_pruning,
    "torch_pruning_hints": by_torch_pruning_with_hints,
}


def attempt(subject: Subject, tool: str) -> dict[str, Any]:
    """Prune a copy with one tool and see whether the result is a smaller network of the same form."""
    model, images = copy.deepcopy(subject.model).eval(), subject.inputs[0][:1]
    with torch.no_grad():
        shape = [t.shape for t in torch.utils._pytree.tree_leaves(model(images))]
    wall, cpu = time.perf_counter(), time.process_time()
    pruned = TOOLS[tool](model, images)
    result: dict[str, Any] = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    with torch.no_grad():
        if [t.shape for t in torch.utils._pytree.tree_leaves(pruned.eval()(images))] != shape:
            return {**result, "ok": False, "reason": "the output has another shape"}
    result["macs_ratio"] = round(measure(pruned, images).macs / measure(subject.model, images).macs, 4)
    result["ok"] = result["macs_ratio"] <= FELL
    result["reason"] = None if result["ok"] else f"MACs fell to {result['macs_ratio']} only"
    return result


class Worker:
    """A process in which one tool prunes one model again and again, warmed up on ``small``."""

    def __init__(self, small: Subject, subject: Subject, tool: str) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=self._serve, args=(there, small, subject, tool))
        self.process.start()
        there.close()
        self.results: list[dict[str, Any]] = []

    @staticmethod
    def _serve(pipe: Any, small: Subject, subject: Subject, tool: str) -> None:
        attempt(
            small, tool
        )  # what a tool imports, builds or first touches in a new process is no part of a model's time
        while pipe.recv():
            try:
                pipe.send(attempt(subject, tool))
            except Exception as error:
                text = (str(error).strip().splitlines() or [""])[0]
                pipe.send({"ok": False, "reason": f"{type(error).__name__}: {text}"[:200]})

    @property
    def succeeds(self) -> bool:
        """No attempt has failed so far."""
        return all(one["ok"] for one in self.results)

    def attempt(self, limit: float) -> None:
        """One more, which may take ``limit`` seconds."""
        result = {"ok": False, "reason": f"took more than {limit:g} s"}
        try:
            self.pipe.send(True)
            if self.pipe.poll(limit):
                result = self.pipe.recv()
        except (EOFError, OSError):
            result = {"ok": False, "reason": "the process died"}
        self.results.append(result)
        if not result["ok"]:
            self.stop()

    def stop(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.join()

    def outcome(self) -> dict[str, Any]:
        """The first failure, or the first attempt with the median times of all."""
        failed = next((one for one in self.results if not one["ok"]), None)
        if failed is not None:
            return failed
        return self.results[0] | {key: round(statistics.median(one[key] for one in self.results), 4) for key in TIMES}


def compare(small: Subject, name: str, limit: float, repeats: int) -> dict[str, Any]:
    """The row of one model."""
    entry = choose([name])[0]
    subject = prepare(entry)
    subject.model.eval()
    gc.collect()
    gc.freeze()  # a collection of what the process had before costs 0.3 s and would hit whichever tool it falls due in
    workers = {tool: Worker(small, subject, tool) for tool in TOOLS}
    for _ in range(repeats):
        for worker in workers.values():
            if worker.succeeds:
                worker.attempt(limit)
    for worker in workers.values():
        worker.stop()
    return {"model": name, "family": entry.family} | {tool: worker.outcome() for tool, worker in workers.items()}


def ratio(row: dict[str, Any], tool: str = "edp_fx") -> float | None:
    """A tool's processor time over Torch-Pruning's, without hints where it succeeds without; None where not both
    succeed."""
    other = next((row[one] for one in ("torch_pruning", "torch_pruning_hints") if row[one]["ok"]), None)
    return row[tool]["cpu_seconds"] / other["cpu_seconds"] if other and row[tool]["ok"] else None


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Successes, and the ratio of processor time where both tools succeed."""
    ratios = {row["model"]: value for row in rows if (value := ratio(row)) is not None}
    unproved = [value for row in rows if (value := ratio(row, "edp_fx_unproved")) is not None]
    return {
        "models": len(rows),
        "succeeds": {tool: sum(row[tool]["ok"] for row in rows) for tool in TOOLS},
        "compared": len(ratios),
        "median_time_ratio": round(statistics.median(ratios.values()), 3) if ratios else None,
        "median_time_ratio_unproved": round(statistics.median(unproved), 3) if unproved else None,
        "worst_time_ratios": {k: round(v, 2) for k, v in sorted(ratios.items(), key=lambda one: -one[1])[:3]},
    }


def main() -> None:
    """Compare what is missing, then sum up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", help="default: the smallest of every timm family")
    parser.add_argument("--limit", type=float, default=60, help="seconds an attempt may take")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/structural_pruning.jsonl"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    small = prepare(choose(["test_resnet"])[0])
    for tool in TOOLS:  # once here too, or every process would import the tool anew
        attempt(small, tool)
    names = arguments.models.split(",") if arguments.models else [e.name for e in choose(families="smallest")]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    rows = read_lines(arguments.out)
    for name in names:
        if name in {row["model"] for row in rows}:
            continue
        row = compare(small, name, arguments.limit, arguments.repeats)
        rows.append(row)
        with arguments.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(
            name,
            {tool: row[tool].get("seconds") if row[tool]["ok"] else row[tool]["reason"] for tool in TOOLS},
            flush=True,
        )
    print(json.dumps(summary(rows), indent=1))


if __name__ == "__main__":
    main()
