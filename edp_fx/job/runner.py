"""Carries a run out: load, compress, judge, save, lower, time, report."""

from __future__ import annotations

import copy
import os
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from edp_fx.errors import EdpError
from edp_fx.files import write_json
from edp_fx.job.plan import Plan
from edp_fx.job.tasks import load_task
from edp_fx.job.written import RUN, read_plan, write_plan
from edp_fx.progress import speaks

if TYPE_CHECKING:
    from edp_fx.data import Data
    from edp_fx.models import LoadedModel
    from edp_fx.train import Watcher

OWN_FILES = (
    RUN,
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
    """A run and where it writes.

    Args:
        plan: what to do.
        out: directory of the results.
        overwrite: replace the results of a former run in it.
        resume: go on with an interrupted run in it.
    """

    plan: Plan
    out: Path
    overwrite: bool = False
    resume: bool = False


def check_directory(job: Job) -> None:
    """Raise :class:`EdpError` where results would land among other files, or with those of another run."""
    out = job.out
    if out.exists() and not out.is_dir():
        raise EdpError(f"--out {out}: is a file; give a directory")
    if job.overwrite and job.resume:
        raise EdpError("--overwrite and --resume: give one of the two")
    if job.resume:
        check_resumed(job)
    elif not job.overwrite and out.is_dir() and any(out.iterdir()):
        raise EdpError(f"--out {out}: not empty; --overwrite replaces the results in it, --resume goes on with them")


def check_resumed(job: Job) -> None:
    """Raise :class:`EdpError` where there is no such run to go on with."""
    written = job.out / RUN
    if not written.exists():
        raise EdpError(f"--resume: nothing to go on with in {job.out}")
    if job.plan.recipe.epochs == 0:
        raise EdpError("--resume: without training there is nothing to go on with; leave it out")
    before = read_plan(written)
    for section in ("model", "data", "method", "recipe"):
        then, now = getattr(before, section), getattr(job.plan, section)
        for name in then.differing(now):
            told = f"{name}={getattr(then, name)}, not {getattr(now, name)}"
            raise EdpError(f"--resume: the run in {job.out} has {told}; resume with the same options, or with none")
    if before.task != job.plan.task:
        raise EdpError(f"--resume: the run in {job.out} has --task {before.task}; resume with the same, or with none")


class Runner:
    """Carries a :class:`Job` out, step by step.

    Raises:
        EdpError: an option is wrong, or the directory is not fit. Nothing is loaded or written.
    """

    def __init__(self, job: Job, watcher: Watcher | None = None, say: Any = None) -> None:
        from edp_fx.cost import load_device
        from edp_fx.latency import make_runtime

        self.job = job
        self.plan = job.plan
        self.watcher = watcher
        self.say = say or (lambda text: None)
        self.target = job.plan.check()
        check_directory(job)
        budget, runtime = job.plan.method.budget, job.plan.runtime
        self.method, self.runtime = job.plan.method, None
        if budget is not None and runtime is not None:
            if budget.device is None:
                self.runtime = make_runtime(runtime)
            else:
                under = load_device(budget.device).under(runtime)
                self.method = self.method.changed(budget=budget.changed(device=under))
        self.trained = job.plan.recipe.epochs > 0
        self.recipe = job.plan.recipe.tuning(self.method.pace) if self.trained else job.plan.recipe
        self.brought = load_task(job.plan.task)
        self.task = self.brought.with_model(None, None)
        self.main = speaks()
        self.seconds: dict[str, float] = {}
        self._existed = job.out.exists()
        self._claimed = False

    def run(self) -> dict[str, Any]:
        """Do it all; returns the report that is also written to ``report.json``.

        Raises:
            EdpError: as the parts do. Nothing is written before the model, the data and the budget are known to be
                good, and nothing is left of a run that failed before its first checkpoint.
        """
        try:
            return self._run()
        except BaseException:
            self._leave_nothing()
            raise

    def _run(self) -> dict[str, Any]:
        from edp_fx.checkpoint import check_saveable
        from edp_fx.cost import measure
        from edp_fx.frontend import trace
        from edp_fx.pipeline import compress

        plan, job = self.plan, self.job
        started = time.perf_counter()
        data, loaded = self._load()
        task = self.task = self.brought.with_model(loaded.loss, loaded.metric)
        teacher = self._teacher(data)
        inputs = loaded.example_inputs
        dense_cost = measure(loaded.model, inputs)
        check_saveable(trace(loaded.model, inputs), inputs)  # hours before it is saved
        task.check_outputs(loaded.given)
        start = copy.deepcopy(loaded.model)
        self._lap("load", started)

        started = time.perf_counter()
        compact = compress(
            loaded.model,
            self._part(data, "train"),
            method=self.method,
            recipe=self.recipe,
            example_inputs=inputs,
            val_loader=data.loaders.get("val") if self.trained else None,
            loss=task.loss if self.trained else None,
            metric=task.metric if self.trained else None,
            teacher=teacher,
            runtime=self.runtime,
            directory=job.out if self.trained else None,
            resume=job.resume,
            watcher=self.watcher,
            before_writing=self._claim,
        )
        self._lap("compress", started)
        started = time.perf_counter()
        dense = self._train_dense(start, loaded, data) if plan.baseline and self.trained else start
        self._lap("dense", started)
        if not self.main:
            return {}
        return self._finish(dense, compact, dense_cost, data, loaded)

    # -- parts --------------------------------------------------------------------------------------------

    def _load(self) -> tuple[Data, LoadedModel]:
        """The data and a model for its classes at its size."""
        from edp_fx.data import load_data
        from edp_fx.data.check import file_warnings
        from edp_fx.models import load_model

        network, images, seed = self.plan.model, self.plan.data, self.plan.recipe.seed
        if images.spec is None:
            return self._load_task()
        if self.brought.data is not None:
            raise EdpError(f"--task {self.plan.task} has data of its own: leave --data out, or data out of the task")
        read = partial(load_data, images.spec, batch_size=images.batch_size, seed=seed, workers=images.workers)
        size = images.img_size or (32 if images.spec in ("digits", "fashion-mnist") else None)
        if size is None:  # the images follow the model
            size = int(load_model(network.spec).input_size[-1])
        data = read(img_size=size)
        loaded = self._model(num_classes=data.num_classes, in_chans=data.in_chans, img_size=size)
        if loaded.preparation:
            data = read(img_size=size, **loaded.preparation)
        self.say(f"{loaded.describe()}\n{data.describe()}")
        for warning in file_warnings(images.spec):
            self.say(f"warning: {warning}")
        assert data.num_classes is not None
        loaded.check_classes(data.num_classes, data.classes)
        return data, loaded

    def _load_task(self) -> tuple[Data, LoadedModel]:
        """The data that the task brings, and a model whose example inputs are two of its images."""
        from edp_fx.train.task import input_names, split

        images, brought = self.plan.data, self.brought
        loaded = self._model(num_classes=brought.num_classes, img_size=images.img_size)
        data = brought.load_data(
            images.img_size or int(loaded.input_size[-1]),
            batch_size=images.batch_size,
            seed=self.plan.recipe.seed,
            workers=images.workers if images.workers is not None else os.cpu_count() or 1,
        )
        names = input_names(loaded.model, len(loaded.example_inputs))
        inputs, _ = split(next(iter(data.train), None), names)
        loaded.example_inputs = tuple(one[:2].clone() for one in inputs)
        self.say(f"{loaded.describe()}\n{data.describe()}")
        return data, loaded

    def _model(self, **options: Any) -> LoadedModel:
        from edp_fx.models import load_model

        network = self.plan.model
        return load_model(
            network.spec,
            pretrained=network.pretrained,
            weights=network.weights,
            mean=network.mean,
            std=network.std,
            seed=self.plan.recipe.seed,
            **options,
        )

    def _teacher(self, data: Data) -> nn.Module | None:
        from edp_fx.models import load_model

        spec = self.plan.model.teacher
        if spec is None:
            return None
        loaded = load_model(
            spec,
            num_classes=data.num_classes,
            in_chans=data.in_chans,
            img_size=data.img_size,
            pretrained=not Path(spec).is_dir(),
        )
        return loaded.model

    def _part(self, data: Data, split: str) -> Any:
        """The images of a split; without training all there are where they are too few to split, and that is said. A
        task without images for test is judged on those for validation."""
        if split == "test" and self.plan.data.spec is None and split not in data.loaders:
            self.say("no images for test: judged on those for validation")
            return data.loader("val")
        if self.trained or split in data.loaders:
            return data.loader(split)
        self.say(f"no images for {split} alone: all of them are used")
        return data.loader("all")

    def _claim(self) -> None:
        """Make the output directory, clearing a former run's results, once everything is known to be good."""
        out = self.job.out
        if not self.main:
            return
        try:
            out.mkdir(parents=True, exist_ok=True)
            self._claimed = True
            if self.job.overwrite and not self.job.resume:
                for directory in (out, out / "dense"):
                    for name in OWN_FILES:
                        (directory / name).unlink(missing_ok=True)
        except OSError as error:
            raise EdpError(f"--out {out}: {error.strerror}; give a directory that can be written") from error
        if not self.job.resume:
            write_plan(self.plan, out / RUN)

    def _leave_nothing(self) -> None:
        """Take away what a run made that never reached a checkpoint, so that the corrected command is not refused."""
        out = self.job.out
        if not self._claimed or self.job.overwrite or self.job.resume or self._kept():
            return
        for path in list(out.iterdir()):  # it was empty before
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not self._existed:
            out.rmdir()

    def _kept(self) -> list[Path]:
        """Checkpoints to go on from."""
        names = (self.job.out / "checkpoint.pt", self.job.out / "dense" / "checkpoint.pt")
        return [path for path in names if path.exists()]

    def _train_dense(self, model: nn.Module, loaded: LoadedModel, data: Data) -> nn.Module:
        """The same epochs, the same recipe, the plain network."""
        from edp_fx.frontend import trace
        from edp_fx.train import Trainer

        gm = trace(model, loaded.example_inputs)
        trainer = Trainer(
            gm,
            data.train,
            self.recipe,
            val_loader=data.loaders.get("val"),
            directory=self.job.out / "dense",
            watcher=self.watcher,
            title="dense",
            task=self.task,
            statistics=self.method.statistics,
        )
        return trainer.run(resume=self.job.resume).model

    def _finish(
        self, dense: nn.Module, compact: fx.GraphModule, dense_cost: Any, data: Data, loaded: LoadedModel
    ) -> dict[str, Any]:
        """Judge both on the test images, save, lower, time, and write the report."""
        import edp_fx
        from edp_fx.cost import measure
        from edp_fx.lowering.latency import onnx_latency
        from edp_fx.lowering.targets import get_target
        from edp_fx.train import evaluate

        job, plan, run = self.job, self.plan, compact.meta["edp_fx.run"]
        started = time.perf_counter()
        networks: dict[str, nn.Module] = {"dense": dense, "compressed": compact}
        # without training the dense network is judged as it came
        judged = {"dense": plan.baseline, "compressed": True}
        test = self._part(data, "test")
        scores = {name: evaluate(network, test, self.task) for name, network in networks.items() if judged[name]}
        for network in networks.values():
            network.cpu().eval()
        self._lap("test", started)
        inputs = tuple(tensor.cpu() for tensor in loaded.example_inputs)
        extra = {
            "model": plan.model.spec,
            "data": plan.data.spec,
            "img_size": data.img_size,
            "classes": data.num_classes,
            "class_names": list(data.classes),
            **({"mean": list(data.mean), "std": list(data.std)} if data.mean else {}),
            **data.cropping,
        }
        is_engine = get_target(self.target).is_engine
        columns: dict[str, dict[str, Any]] = {}
        lowered: dict[str, Any] = {}
        started = time.perf_counter()
        for name, network in networks.items():
            directory = job.out if name == "compressed" else job.out / "dense"
            directory.mkdir(parents=True, exist_ok=True)
            file_bytes = self._save(name, network, directory, inputs, extra)
            self.say(f"lowering the {name} network to {self.target}")
            lowered[name] = self._lower(network, inputs, directory, extra)
            cost = measure(network, inputs) if name == "compressed" else dense_cost
            columns[name] = {
                "macs": cost.macs,
                "params": cost.params,
                "file_bytes": file_bytes,
                "metric": scores[name].metric if name in scores else None,
                "loss": scores[name].loss if name in scores else None,
                "latency_ms": None,
                "engine_bytes": lowered[name].bytes if is_engine else None,
            }
        self._lap("lower", started)
        self.say("timing under onnxruntime")
        started = time.perf_counter()
        for name, latency in onnx_latency(networks, inputs).items():
            columns[name]["latency_ms"] = latency.median_ms
        self._lap("latency", started)
        result = lowered["compressed"]
        report = {
            "run": plan.plain(),
            **columns,
            "macs_ratio": columns["compressed"]["macs"] / columns["dense"]["macs"],
            "latency_budget": run.get("timing"),
            "judged_by": scores["compressed"].name,
            "kinds": run["kinds"],
            "prune_merge": {"max_rel_diff": run["max_rel_diff"]},
            "onnx": {"path": str(job.out / "model.onnx"), "max_abs_diff": result.max_abs_diff},
            "target": self.target,
            "engine": (
                {"path": str(result.path), "builder": result.builder, "bytes": result.bytes} if is_engine else None
            ),
            "refused": run["refused"],
            "data": {"name": data.name, "splits": data.splits, "img_size": data.img_size},
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

    def _lower(self, network: nn.Module, inputs: tuple[Any, ...], directory: Path, extra: dict[str, Any]) -> Any:
        from edp_fx.lowering import lower
        from edp_fx.lowering.targets import get_target

        onnx = directory / "model.onnx"
        options: dict[str, Any] = {"target": self.target, "precision": self.plan.lower.precision, "extra": extra}
        if get_target(self.target).is_engine:
            path = directory / "model.engine"
            return lower(network, inputs, path, **options, onnx_path=onnx)
        return lower(network, inputs, onnx, **options)

    def interrupted(self) -> str:
        """What is left after Ctrl-C."""
        kept = self._kept()
        if not kept:
            return "interrupted before the first checkpoint; nothing to go on with"
        names = " and ".join(str(path) for path in kept)
        return f"interrupted; {names} kept: edp-fx compress --resume --out {self.job.out} goes on"

    def _lap(self, name: str, started: float) -> None:
        self.seconds[name] = round(time.perf_counter() - started, 2)
