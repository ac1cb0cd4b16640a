"""What a run does: all that a report holds to repeat it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from edp_fx.compressor.method import Method
from edp_fx.cost.device import RUNTIMES
from edp_fx.errors import BudgetError, DataError, EdpError, LoweringError, ModelError, TrainingError
from edp_fx.extras import need
from edp_fx.settings import Settings, bounded
from edp_fx.train.recipe import Recipe


@dataclass(frozen=True)
class Network(Settings):
    """The network to compress.

    Args:
        spec: timm name, ``torchvision:NAME``, ``module.path:callable`` or a saved directory.
        pretrained: start from published weights.
        weights: start from a file of weights of this model.
        mean: of the images' normalisation, one number or one a channel; the weights' own, or the data's, where None.
        std: likewise the standard deviation.
        teacher: a model or saved directory to distil from, instead of the method's own teacher.
    """

    error: ClassVar[type[EdpError]] = ModelError
    what: ClassVar[str] = "model"

    spec: str
    pretrained: bool = False
    weights: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    teacher: str | None = None

    @property
    def trained(self) -> bool:
        """Whether it comes with trained weights."""
        return self.pretrained or self.weights is not None or Path(self.spec).is_dir()


@dataclass(frozen=True)
class Images(Settings):
    """The images to train and judge on.

    Args:
        spec: see :data:`edp_fx.data.DATA_HELP`; None for those that a task brings.
        img_size: side in pixels; the data set's or the model's own where None.
        batch_size: images a step, over all processes.
        workers: processes that read image files; as many as there are processor cores where None.
    """

    error: ClassVar[type[EdpError]] = DataError
    what: ClassVar[str] = "data"

    spec: str | None = None
    img_size: int | None = bounded(None, least=8)
    batch_size: int = bounded(32, least=1)
    workers: int | None = bounded(None, least=0)


@dataclass(frozen=True)
class Lowering(Settings):
    """What the networks are lowered to.

    Args:
        target: one of :data:`edp_fx.lowering.TARGETS`; chosen by the machine where None.
        precision: of the engine.
    """

    error: ClassVar[type[EdpError]] = LoweringError
    what: ClassVar[str] = "lower"

    target: str | None = None
    precision: str = "fp32"


@dataclass(frozen=True)
class Plan(Settings):
    """A run, but for where it writes.

    Args:
        model: the network.
        data: the images.
        method: how to compress.
        recipe: how to train; the dense network is trained by the same.
        lower: what to lower to.
        baseline: also train the dense network, to compare; not without training.
        runtime: what runs the network that a budget of latency is for: the device's own where None.
        task: ``module.path:object`` with any of ``loss``, ``metric`` and ``data``; classes where None.
    """

    what: ClassVar[str] = "run"

    model: Network
    data: Images
    method: Method
    recipe: Recipe
    lower: Lowering = Lowering()
    baseline: bool = True
    runtime: str | None = bounded(None, choices=RUNTIMES)
    task: str | None = None

    def check(self) -> str:
        """Everything that can be wrong before anything is loaded or written; returns the lowering target.

        Raises:
            EdpError: says which option is wrong and what to do.
        """
        from edp_fx.data import check_spec
        from edp_fx.lowering.api import check_precision
        from edp_fx.lowering.target import BuildOptions
        from edp_fx.lowering.targets import choose_target

        budget = self.method.budget
        if self.method.policy == "budget" and budget is None:
            raise BudgetError("give a budget: --macs, --params or --latency, a share in (0, 1]")
        if budget is not None and budget.value > 1 and budget.metric != "latency":
            asked = f"--{budget.metric} {budget.value:g}"
            raise BudgetError(f"{asked}: give a share of the dense network in (0, 1]")
        latency = budget is not None and budget.metric == "latency"
        if not latency and self.runtime is not None:
            raise BudgetError(f"--runtime {self.runtime}: serves a budget of latency only: give --latency")
        if self.recipe.epochs == 0:
            self.method.check_without_training()
            if self.model.teacher is not None:
                raise TrainingError("--teacher: nothing is learnt without training; leave it out, or give --epochs")
        if self.data.spec is not None:
            check_spec(self.data.spec)
        if self.recipe.epochs:
            need("train", "training", "accelerate")
        need("lower", "lowering the result")
        target = choose_target(self.lower.target)
        target.check(BuildOptions())
        check_precision(target, self.lower.precision)
        return target.name
