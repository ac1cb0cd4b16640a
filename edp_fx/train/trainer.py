"""The ready training loop, on Hugging Face Accelerate: one process or many, float32 or mixed precision."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from edp_fx.compressor.compressor import Compressor
from edp_fx.errors import TrainingError, typed_line
from edp_fx.extras import need
from edp_fx.train.compiled import Compiled
from edp_fx.train.deterministic import deterministic
from edp_fx.train.distillation import Teacher
from edp_fx.train.evaluate import evaluate
from edp_fx.train.metrics import MetricsLog
from edp_fx.train.precision import mixed_precision
from edp_fx.train.progress import Silent, Watcher
from edp_fx.train.recipe import Recipe, choose_epoch, seed_everything
from edp_fx.train.state import load_state, save_state
from edp_fx.train.statistics import STATISTICS, hold_statistics, renew_statistics
from edp_fx.train.task import Score, Task, floats, input_names, placed, split

CHECK_EVERY = 20  # steps between looks at the loss on a device where looking waits for it


@dataclass
class Outcome:
    """What training gave: the network, its last validation score, and how long each epoch took (seconds)."""

    model: fx.GraphModule
    validation: Score | None
    epoch_seconds: list[float] = field(default_factory=list)
    compressor: Compressor | None = None


class Trainer:
    """Trains a traced network, compressing it on the way where a compressor is asked for.

    Args:
        gm: the network; changed in place.
        train_loader: batches as :func:`~edp_fx.train.task.split` takes them, with a length.
        recipe: see :class:`~edp_fx.train.recipe.Recipe`.
        val_loader: judged after every epoch on the main process.
        make_compressor: (gm, optimizer, total_steps) -> Compressor; plain training where None.
        directory: where ``checkpoint.pt``, ``metrics.jsonl`` and TensorBoard events go; nothing is written
            where None.
        teacher: to distil from.
        watcher: shown the progress.
        title: what the run is called in it.
        task: what is minimised and judged; classes where None.
        statistics: of batch norms: ``moving`` as the run goes on; ``anew`` of 64 batches at its end; ``held`` as they
            came, and what is normalised by: those of a trained network are of more images than a short run sees, and
            what a small batch says of them is noise.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        train_loader: Any,
        recipe: Recipe,
        *,
        val_loader: Any = None,
        make_compressor: Callable[..., Compressor] | None = None,
        directory: Path | None = None,
        teacher: Teacher | None = None,
        watcher: Watcher | None = None,
        title: str = "training",
        task: Task | None = None,
        statistics: str = "moving",
    ) -> None:
        need("train", "training", "accelerate")
        from accelerate import Accelerator, DataLoaderConfiguration

        self.recipe = recipe
        self.task = task or Task()
        if statistics not in STATISTICS:
            raise TrainingError(f"statistics={statistics}: give one of {', '.join(STATISTICS)}")
        self.statistics = statistics
        if recipe.label_smoothing and not self.task.classifies:
            raise TrainingError("label_smoothing is of the default loss: leave it out where loss= is given")
        self.names = input_names(gm)
        # not told the precision, of which it allows a process only one: torch's own autocast is used below
        self.accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(split_batches=True))
        self.device = self.accelerator.device
        self.main = self.accelerator.is_main_process
        self.source = train_loader
        self.loader = self._prepared(train_loader)
        self.val_loader = val_loader
        try:
            batches = len(self.loader)
        except TypeError as error:
            kind = type(train_loader).__name__
            raise TrainingError(f"the training loader has no length: give a DataLoader, not a {kind}") from error
        if batches == 0:
            raise TrainingError("the training loader has no batch: fewer images than a batch has")
        if recipe.accumulate > batches:
            raise TrainingError(f"accumulate={recipe.accumulate}: an epoch has no more than {batches} batches")
        self.steps_per_epoch = math.ceil(batches / recipe.accumulate)
        self.total_steps = recipe.epochs * self.steps_per_epoch
        self.gm = gm.to(self.device)
        self.optimizer = recipe.make_optimizer(self.gm)
        self.compressor = make_compressor(self.gm, self.optimizer, self.total_steps) if make_compressor else None
        if self.compressor is not None:
            self.gm = self.compressor.gm
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.mixed_precision == "fp16")
        self.teacher = teacher.to(self.device) if teacher is not None else None
        self.average = self._make_average()
        self.directory = directory
        self.watcher: Watcher = watcher if watcher is not None and self.main else Silent()
        self.title = title
        self.model = self._wrapped()
        self.epoch = 0
        self.step = 0

    # -- setting up ---------------------------------------------------------------------------------------

    def _prepared(self, loader: Any) -> Any:
        if self.accelerator.num_processes == 1:
            return loader
        from torch.utils.data import DataLoader

        if not isinstance(loader, DataLoader):
            raise TrainingError("several processes need a torch DataLoader to share out, not " + type(loader).__name__)
        return self.accelerator.prepare_data_loader(loader)

    def _wrapped(self) -> nn.Module:
        """What a step calls: the network, by DDP where there are several processes, compiled where the recipe says so;
        made anew whenever its shape changed."""
        network: nn.Module = self.gm
        if self.accelerator.num_processes > 1:
            devices = [self.device] if self.device.type == "cuda" else None
            network = nn.parallel.DistributedDataParallel(self.gm, device_ids=devices)
        if not self.recipe.compiled:
            return network
        return Compiled(network, self.gm, captured=self.recipe.accumulate == 1)

    def _make_average(self) -> Any:
        if not self.recipe.ema:
            return None
        need("train", "an average of the weights (ema)", "timm")
        from timm.utils import ModelEmaV3

        average = ModelEmaV3(self.gm, decay=self.recipe.ema, use_warmup=True)
        if self.compressor is not None and not self.compressor.done:
            self.compressor.follow(average.module)
        return average

    # -- running ------------------------------------------------------------------------------------------

    def run(self, *, resume: bool = False) -> Outcome:
        """Train to the end of the recipe.

        Args:
            resume: go on from ``checkpoint.pt`` in the directory where there is one.

        Raises:
            TrainingError: the loss is not finite, the loader fails or a checkpoint cannot be written; the
                last good checkpoint stays.
        """
        if resume and self.checkpoint is not None and self.checkpoint.exists():
            self._load(self.checkpoint)
        log = None
        if self.directory is not None and self.main:
            log = MetricsLog(self.directory, resume_step=self.step)
        seconds: list[float] = []
        score: Score | None = None
        target = self.compressor.target / self.compressor.dense if self.compressor and self.compressor.budget else None
        self.watcher.begin(self.title, self.recipe.epochs, self.total_steps, target)
        if log is not None and self.step == 0 and self.compressor is not None:
            for event in self.compressor.events:  # before the first step
                log.write(0, event)
        try:
            for epoch in range(self.epoch, self.recipe.epochs):
                started = time.perf_counter()
                with deterministic() if self.recipe.deterministic else nullcontext():
                    loss = self._one_epoch(epoch, log)
                    if self.statistics == "anew" and epoch + 1 == self.recipe.epochs:
                        self._renew_statistics(epoch)
                seconds.append(time.perf_counter() - started)
                score = self._judge()
                self.epoch = epoch + 1
                if log is not None:
                    record: dict[str, Any] = {
                        "epoch": epoch + 1,
                        "train_loss": loss,
                        "seconds": seconds[-1],
                        **self._cost_record(),
                    }
                    if score:
                        record |= {"val_metric": score.metric, "val_loss": score.loss, "metric_name": score.name}
                    log.write(self.step, record)
                self.watcher.epoch(epoch, loss, score.metric if score else None, self._cost())
                self._save()
        finally:
            self.watcher.end()
            if log is not None:
                log.close()
        if self.average is not None:
            self.gm.load_state_dict(self.average.module.state_dict())
        if self.compressor is not None:
            self.gm = self.compressor.finish()
        return Outcome(self.gm, score, seconds, self.compressor)

    def _one_epoch(self, epoch: int, log: MetricsLog | None) -> float:
        seed_everything(self.recipe.seed, epoch, self.accelerator.process_index)
        choose_epoch(epoch, self.loader, self.source)
        self.gm.train()
        if self.statistics == "held":
            hold_statistics(self.gm)
        count, pending, running = 0, 0, torch.zeros((), device=self.device)
        batches = len(self.loader)
        for number, (inputs, targets) in enumerate(self._batches(epoch)):
            last = number + 1 == batches
            group = min(self.recipe.accumulate, batches - (number - pending))
            pending += 1
            synchronise = pending == self.recipe.accumulate or last
            loss = self._forward_backward(inputs, targets, group, synchronise)
            running += loss
            count += 1
            if not synchronise:
                continue
            pending = 0
            self._optimizer_step()
            looks = self.device.type == "cpu" or self.step % CHECK_EVERY == 0
            if looks:
                self._must_be_finite(float(loss), epoch)
                self.watcher.step(epoch, self.step, float(loss), self._cost())
            if log is not None:
                for event in self._new_events():
                    log.write(self.step, event)
                if looks:
                    log.write(self.step, {"loss": float(loss), "lr": self._lr(), **self._cost_record()})
        mean = float(running) / max(count, 1)
        self._must_be_finite(mean, epoch)
        return mean

    def _renew_statistics(self, epoch: int) -> None:
        network = self.gm if self.average is None else self.average.module
        renew_statistics(network, (inputs for inputs, _ in self._batches(epoch)))

    def _batches(self, epoch: int) -> Iterator[tuple[tuple[Tensor, ...], Any]]:
        iterator = iter(self.loader)
        while True:
            try:
                batch = split(next(iterator), self.names)
            except StopIteration:
                return
            except TrainingError:
                raise
            except Exception as error:
                raise TrainingError(
                    f"the training loader failed in epoch {epoch + 1}, step {self.step}: {typed_line(error)}; "
                    f"{self._kept()}"
                ) from error
            yield placed(batch, self.device)

    def _forward_backward(self, inputs: tuple[Tensor, ...], targets: Any, group: int, synchronise: bool) -> Tensor:
        hold = getattr(self.model, "no_sync", None)
        with nullcontext() if synchronise or hold is None else hold():
            with mixed_precision(self.device.type, self.recipe.dtype):
                outputs = floats(self.model(*inputs))
                if self.step == 0:  # once: on a GPU looking waits for it
                    self.task.check(outputs, targets)
                loss = self.task.minimised(outputs, targets, self.recipe.label_smoothing)
                if self.teacher is not None:
                    loss = self.teacher.mixed(loss, outputs, inputs)
            self.scaler.scale(loss / group).backward()
        return loss.detach()

    def _optimizer_step(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr()
        if self.recipe.clip_grad:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.gm.parameters(), self.recipe.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        changed = self.compressor.step() if self.compressor is not None else False
        self.optimizer.zero_grad()
        if changed and self.compressor is not None:
            self.gm = self.compressor.gm
            self.model = self._wrapped()
        if self.average is not None:
            self.average.update(self.gm, step=self.step)

    def _lr(self) -> float:
        return self.recipe.lr_at(min(self.step, self.total_steps - 1), self.total_steps)

    def _judge(self) -> Score | None:
        if self.val_loader is None:
            return None
        model = self.average.module if self.average is not None else self.gm
        score = evaluate(model, self.val_loader, self.task) if self.main else None
        self.accelerator.wait_for_everyone()
        return score

    # -- records ------------------------------------------------------------------------------------------

    def _cost(self) -> float | None:
        return self.compressor.macs if self.compressor is not None else None

    def _new_events(self) -> list[dict[str, Any]]:
        """What the compressor did in the step just made."""
        if self.compressor is None:
            return []
        return [event for event in self.compressor.events[-2:] if event["step"] == self.compressor.count]

    def _cost_record(self) -> dict[str, float]:
        return {} if self.compressor is None else {self.compressor.metric: self.compressor.macs}

    def _must_be_finite(self, loss: float, epoch: int) -> None:
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss} in epoch {epoch + 1}, step {self.step}: lower the learning rate "
                f"(now {self._lr():.3g}) or check the data; {self._kept()}"
            )

    def _kept(self) -> str:
        if self.checkpoint is not None and self.checkpoint.exists():
            return f"the last good checkpoint, after epoch {self.epoch}, is {self.checkpoint}"
        return "no checkpoint was written yet"

    @property
    def checkpoint(self) -> Path | None:
        """The file that :meth:`run` resumes from."""
        return None if self.directory is None else self.directory / "checkpoint.pt"

    def _save(self) -> None:
        if self.checkpoint is not None and self.main:
            save_state(
                {
                    "progress": {"epoch": self.epoch, "step": self.step},
                    "recipe": self.recipe.plain(),
                    "model": self.gm.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "compressor": self.compressor.state_dict() if self.compressor is not None else None,
                    "average": self.average.module.state_dict() if self.average is not None else None,
                    "scaler": self.scaler.state_dict(),
                },
                self.checkpoint,
            )
        self.accelerator.wait_for_everyone()

    def _load(self, path: Path) -> None:
        state = load_state(path)
        if state["recipe"] != self.recipe.plain():
            now, then = self.recipe.plain(), state["recipe"]
            changed = [key for key, value in now.items() if then.get(key) != value]
            raise TrainingError(
                f"{path}: written with another recipe (different: {', '.join(changed)}); resume with the same options"
            )
        if self.compressor is not None:
            self.compressor.load_state_dict(state["compressor"])
            self.gm = self.compressor.gm
        self.gm.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.epoch = int(state["progress"]["epoch"])
        self.step = int(state["progress"]["step"])
        self.model = self._wrapped()
