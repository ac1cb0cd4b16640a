"""The main job of ``edp-fx compress``: from a model's name to a compact network, its files and its
figures."""

from __future__ import annotations

import copy
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from edp_fx.compressor.budget import Budget
from edp_fx.compressor.kinds import check_kinds, check_without_training
from edp_fx.compressor.method import POLICIES, Method
from edp_fx.errors import BudgetError, EdpError
from edp_fx.files import write_json
from edp_fx.train.recipe import Recipe

if TYPE_CHECKING:
    from edp_fx.data import Data
    from edp_fx.models import LoadedModel
    from edp_fx.train import Watcher

ENGINES = ("tensorrt-rtx", "tensorrt")
OWN_FILES = (
    "report.json",
    "checkpoint.pt",
    "metrics.jsonl",
    "model.onnx",
    "model.engine",
    "model.engine.json",
    "report.html",
    "curves.png",
    "layers.png",
)


@dataclass(frozen=True)
class Job:
    """What to do: the options of the command, checked when made.

    Args:
        model: timm name, ``torchvision:NAME``, ``module.path:callable`` or a saved directory.
        data: see :data:`edp_fx.data.DATA_HELP`.
        budget: what the result may cost.
        out: directory of the results.
        recipe: how to train; the dense network is trained by the same.
        baseline: also train the dense network.
        target: ``tensorrt-rtx``, ``tensorrt``, ``onnxruntime`` or ``onnx``; chosen by the machine where None.
        precision: of the engine.
        runtime: what a budget of latency is measured on: ``onnxruntime``, ``torch`` or ``tensorrt``.
        overwrite: replace the results of a former run in ``out``.
        resume: go on with an interrupted run in ``out``.
    """

    model: str
    data: str
    budget: Budget | None
    out: Path
    recipe: Recipe
    baseline: bool = True
    img_size: int | None = None
    batch_size: int = 64
    workers: int = 0
    pretrained: bool = False
    policy: str = "budget"
    strength: float = 1e-3
    importance: str = "taylor"
    floor: float = 0.15
    allow_inexact: bool = False
    kinds: tuple[str, ...] = ("rank", "channel")
    align: int = 1
    runtime: str = "onnxruntime"
    teacher: str | None = None
    target: str | None = None
    precision: str = "fp32"
    overwrite: bool = False
    resume: bool = False
    insert_options: dict[str, Any] = field(default_factory=dict)

    def check(self) -> str:
        """Everything that can be wrong before anything is loaded or written; returns the lowering target.

        Raises:
            EdpError: says which option is wrong and what to do.
        """
        from edp_fx.compressor.importance import make_importance
        from edp_fx.data import check_spec
        from edp_fx.lowering.choice import choose_target

        if self.budget is not None and self.budget.value > 1 and self.budget.metric != "latency":
            asked = f"--{self.budget.metric} {self.budget.value:g}"
            raise BudgetError(f"{asked}: give a share of the dense network in (0, 1]")
        if self.policy not in POLICIES:
            raise BudgetError(f"--policy {self.policy}: unknown; take one of {', '.join(POLICIES)}")
        if self.policy == "budget" and self.budget is None:
            raise BudgetError("give a budget: --macs, --params or --latency, a share in (0, 1]")
        method = Method(self.budget, policy=self.policy, importance=self.importance)
        check_kinds(self.kinds, method, make_importance(self.importance))
        if self.recipe.epochs == 0:
            check_without_training(self.kinds)
        check_spec(self.data)
        check_directory(self.out, overwrite=self.overwrite, resume=self.resume)
        return choose_target(self.target, self.precision)


def check_directory(out: Path, *, overwrite: bool, resume: bool) -> None:
    """Raise :class:`EdpError` where results would land among other files."""
    if out.exists() and not out.is_dir():
        raise EdpError(f"--out {out}: is a file; give a directory")
    occupied = out.is_dir() and any(out.iterdir())
    if resume and not occupied:
        raise EdpError(f"--resume: nothing to go on with in {out}")
    if occupied and not (overwrite or resume):
        raise EdpError(f"--out {out}: not empty; --overwrite replaces the results in it, --resume goes on with them")


class Runner:
    """Carries a :class:`Job` out, step by step."""

    def __init__(self, job: Job, watcher: Watcher | None = None, say: Any = None) -> None:
        self.job = job
        self.watcher = watcher
        self.say = say or (lambda text: None)
        self.target = job.check()
        self.main = int(os.environ.get("RANK", "0")) == 0
        self.seconds: dict[str, float] = {}

    def run(self) -> dict[str, Any]:
        """Do it all; returns the report that is also written to ``report.json``.

        Raises:
            EdpError: as the parts do. Nothing is written before the model, the data and the budget are known
                to be good.
        """
        from edp_fx.cost import measure
        from edp_fx.latency import LatencyTable
        from edp_fx.pipeline import compress

        job = self.job
        table = LatencyTable(job.runtime) if job.budget and job.budget.metric == "latency" else None
        started = time.perf_counter()
        data, loaded = self._load()
        teacher = self._teacher(data) if job.teacher else None
        inputs = loaded.example_inputs
        dense_cost = measure(loaded.model, inputs)
        assert data is not None
        model = loaded.model
        start = copy.deepcopy(model)
        self._lap("load", started)

        started = time.perf_counter()
        budget = job.budget
        asked: dict[str, Any] = {budget.metric: budget.value} if budget else {}
        compact = compress(
            model,
            data.train,
            example_inputs=inputs,
            val_loader=data.val,
            recipe=job.recipe,
            policy=job.policy,
            strength=job.strength,
            importance=job.importance,
            floor=job.floor,
            allow_inexact=job.allow_inexact,
            kinds=job.kinds,
            align=job.align,
            latency_table=table,
            insert_options=job.insert_options,
            teacher=teacher,
            directory=job.out,
            resume=job.resume,
            before_writing=self._claim,
            watcher=self.watcher,
            **asked,
        )
        self._lap("compress", started)
        started = time.perf_counter()
        dense = self._train_dense(start, loaded, data) if job.baseline and job.recipe.epochs else start
        self._lap("dense", started)
        if not self.main:
            return {}
        return self._finish(dense, compact, dense_cost, data, loaded)

    # -- parts --------------------------------------------------------------------------------------------

    def _load(self) -> tuple[Data, LoadedModel]:
        """The data and a model for its classes at its size."""
        from edp_fx.data import load_data
        from edp_fx.models import load_model

        job = self.job
        in_memory = job.data in ("digits", "fashion-mnist")
        size = job.img_size or (32 if in_memory else None)
        options: dict[str, Any] = {
            "batch_size": job.batch_size,
            "seed": job.recipe.seed,
            "workers": job.workers,
        }
        if size is None:  # the images follow the model
            probe = load_model(job.model, pretrained=False)
            size = int(probe.input_size[-1])
        data = load_data(job.data, img_size=size, **options)
        loaded = load_model(
            job.model,
            num_classes=data.num_classes,
            in_chans=data.in_chans,
            img_size=size,
            pretrained=job.pretrained,
            seed=job.recipe.seed,
        )
        if job.pretrained:  # such weights expect the normalisation they were trained with
            data = load_data(job.data, img_size=size, mean=loaded.mean, std=loaded.std, **options)
        return data, loaded

    def _teacher(self, data: Data) -> nn.Module:
        from edp_fx.models import load_model

        assert self.job.teacher is not None
        loaded = load_model(
            self.job.teacher,
            num_classes=data.num_classes,
            in_chans=data.in_chans,
            img_size=data.img_size,
            pretrained=self.job.pretrained,
        )
        return loaded.model

    def _claim(self) -> None:
        """Make the output directory, clearing a former run's results, once everything is known to be good."""
        out = self.job.out
        if not self.main:
            return
        try:
            out.mkdir(parents=True, exist_ok=True)
            if self.job.overwrite and not self.job.resume:
                for directory in (out, out / "dense"):
                    for name in OWN_FILES:
                        (directory / name).unlink(missing_ok=True)
        except OSError as error:
            raise EdpError(f"--out {out}: {error.strerror}; give a directory that can be written") from error

    def _train_dense(self, model: nn.Module, loaded: LoadedModel, data: Data) -> nn.Module:
        """The same epochs, the same recipe, the plain network."""
        from edp_fx.frontend import trace
        from edp_fx.train import Trainer

        gm = trace(model, loaded.example_inputs)
        trainer = Trainer(
            gm,
            data.train,
            self.job.recipe,
            val_loader=data.val,
            directory=self.job.out / "dense",
            watcher=self.watcher,
            title="dense",
        )
        return trainer.run(resume=self.job.resume).model

    def _finish(
        self, dense: nn.Module, compact: fx.GraphModule, dense_cost: Any, data: Data, loaded: LoadedModel
    ) -> dict[str, Any]:
        """Judge both on the test images, save, lower, time, and write the report."""
        import edp_fx
        from edp_fx.cost import measure
        from edp_fx.lowering.latency import onnx_latency
        from edp_fx.train import evaluate

        job, run = self.job, compact.meta["edp_fx.run"]
        started = time.perf_counter()
        networks: dict[str, nn.Module] = {"dense": dense, "compressed": compact}
        judged = {"dense": job.baseline and job.recipe.epochs > 0, "compressed": True}
        scores = {
            name: evaluate(network, data.test).accuracy if judged[name] else None for name, network in networks.items()
        }
        for network in networks.values():
            network.cpu().eval()
        self._lap("test", started)
        inputs = tuple(tensor.cpu() for tensor in loaded.example_inputs)
        extra = {"model": job.model, "data": job.data, "img_size": data.img_size, "classes": data.num_classes}
        if job.pretrained:  # evaluation must normalise as training did
            extra |= {"mean": list(loaded.mean), "std": list(loaded.std)}
        columns: dict[str, dict[str, Any]] = {}
        lowered: dict[str, Any] = {}
        started = time.perf_counter()
        for name, network in networks.items():
            directory = job.out if name == "compressed" else job.out / "dense"
            directory.mkdir(parents=True, exist_ok=True)
            file_bytes = self._save(name, network, directory, inputs, extra)
            self.say(f"lowering the {name} network to {self.target}")
            lowered[name] = self._lower(network, inputs, directory)
            cost = measure(network, inputs) if name == "compressed" else dense_cost
            columns[name] = {
                "macs": cost.macs,
                "params": cost.params,
                "file_bytes": file_bytes,
                "accuracy": scores[name],
                "latency_ms": None,
                "engine_bytes": lowered[name].bytes if self.target in ENGINES else None,
            }
        self._lap("lower", started)
        self.say("timing under onnxruntime")
        started = time.perf_counter()
        for name, latency in onnx_latency(networks, inputs).items():
            columns[name]["latency_ms"] = latency.median_ms
        self._lap("latency", started)
        result = lowered["compressed"]
        report = {
            **columns,
            "budget": {job.budget.metric: job.budget.value} if job.budget else None,
            "latency_budget_ms": run.get("latency_ms"),
            "macs_ratio": columns["compressed"]["macs"] / columns["dense"]["macs"],
            "epochs": job.recipe.epochs,
            "seed": job.recipe.seed,
            "prune_merge": {"max_rel_diff": run["max_rel_diff"]},
            "onnx": {"path": str(job.out / "model.onnx"), "max_abs_diff": result.max_abs_diff},
            "engine": (
                {"path": str(result.path), "builder": result.builder, "bytes": result.bytes}
                if self.target in ENGINES
                else None
            ),
            "refused": run["refused"],
            "model": job.model,
            "data": {"name": data.name, "splits": data.splits, "img_size": data.img_size},
            "policy": job.policy,
            "importance": job.importance,
            "target": self.target,
            "precision": job.precision,
            "layers": run["layers"],
            "events": run["events"],
            "seconds": self.seconds,
            "versions": {"edp_fx": edp_fx.__version__, "torch": torch.__version__},
        }
        write_json(report, job.out / "report.json")
        return report

    def _save(
        self, name: str, network: nn.Module, directory: Path, inputs: tuple[Any, ...], extra: dict[str, Any]
    ) -> int:
        """Save a network; returns the bytes of its weights file."""
        from edp_fx.checkpoint import save
        from edp_fx.frontend import trace

        gm = network if isinstance(network, fx.GraphModule) else trace(network, inputs)
        save(gm, directory, inputs, extra=extra)
        return sum(path.stat().st_size for path in directory.glob("*.safetensors"))

    def _lower(self, network: nn.Module, inputs: tuple[Any, ...], directory: Path) -> Any:
        from edp_fx.lowering import lower

        onnx = directory / "model.onnx"
        if self.target in ENGINES:
            path = directory / "model.engine"
            return lower(network, inputs, path, target=self.target, precision=self.job.precision, onnx_path=onnx)
        return lower(network, inputs, onnx, target=self.target, precision=self.job.precision)

    def interrupted(self) -> str:
        """What is left after Ctrl-C."""
        kept = [
            path for path in (self.job.out / "checkpoint.pt", self.job.out / "dense" / "checkpoint.pt") if path.exists()
        ]
        if not kept:
            return "interrupted before the first checkpoint; nothing to go on with"
        names = " and ".join(str(path) for path in kept)
        return f"interrupted; {names} kept: the same command with --resume goes on from there"

    def _lap(self, name: str, started: float) -> None:
        self.seconds[name] = round(time.perf_counter() - started, 2)
