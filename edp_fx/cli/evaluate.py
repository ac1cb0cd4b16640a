"""``edp-fx evaluate``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edp_fx.cli.options import MODEL_HELP, Task, takes_model_options

if TYPE_CHECKING:
    from edp_fx.data import Data
    from edp_fx.train import Score

EXAMPLE = "Example: edp-fx evaluate resnet18.a1_in1k --pretrained --data folder:PATH --split all"


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("evaluate", epilog=EXAMPLE)(takes_model_options(evaluate))


def evaluate(
    model: Annotated[str | None, typer.Argument(help=MODEL_HELP)] = None,
    data: Annotated[
        str | None, typer.Option(help="digits, fashion-mnist, folder:PATH or torchvision:NAME:PATH.")
    ] = None,
    task: Task = None,
    engine: Annotated[
        Path | None,
        typer.Option(help="An engine (NVIDIA GPU) or .onnx file to evaluate, alone or beside the model."),
    ] = None,
    split: Annotated[str, typer.Option(help="test, val, train or all: every image there is.")] = "test",
    batch_size: Annotated[int, typer.Option(help="Images a batch.", min=1)] = 64,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the figures as JSON.")] = None,
    *,
    how: dict[str, Any],
) -> None:
    """Accuracy of a model, an engine, or both on a data set; with --task the metric of another task."""
    from dataclasses import asdict

    import torch

    from edp_fx.data import SPLITS, check_spec
    from edp_fx.errors import DataError, ModelError
    from edp_fx.files import check_writable, write_json
    from edp_fx.job.tasks import load_task
    from edp_fx.lowering.engine import load_engine
    from edp_fx.lowering.whole_batches import WholeBatches
    from edp_fx.train import evaluate as judge

    if model is None and engine is None:
        raise ModelError("nothing to evaluate: name a model, an --engine, or both")
    if split not in SPLITS:
        raise DataError(f"--split {split}: unknown; take one of {', '.join(SPLITS)}")
    if json_path is not None:
        check_writable(json_path)
    brought = load_task(task)
    if data is None and brought.data is None:
        raise DataError("give --data D" + (f": --task {task} has no data" if task else ""))
    if data is not None:
        check_spec(data)
    runner = load_engine(engine) if engine is not None else None
    loaded: Any = None
    if model is not None:
        from edp_fx.models import load_model

        loaded = load_model(model, **how)
    shown = loaded.example_inputs if loaded is not None else runner.example_inputs() if runner else ()
    size = int(shown[0].shape[-1])
    if data is not None:
        images = _images(data, batch_size, size, loaded, engine, how)
    else:
        images = brought.load_data(size, batch_size=batch_size, seed=0, workers=os.cpu_count() or 1)
    loader = images.loader(split)
    if loaded is not None:
        typer.echo(loaded.describe())
        if images.num_classes is not None and data is not None:
            loaded.check_classes(images.num_classes, images.classes)
    typer.echo(f"{images.describe()}\nevaluated on: {split}")
    aim = brought.with_model(loaded.loss, loaded.metric) if loaded is not None else brought.with_model(None, None)
    results: dict[str, Score] = {}
    if loaded is not None and model is not None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        results[model] = judge(loaded.model.to(device), loader, aim, len(shown))
    if runner is not None:
        like = loaded.given if loaded is not None else None
        results[str(engine)] = judge(WholeBatches(runner, like), loader, aim, len(shown))
    if not all(one.images for one in results.values()):
        raise DataError("the data set has no images in this split")
    typer.echo(_table(results))
    if json_path is not None:
        write_json({name: asdict(one) for name, one in results.items()}, json_path)


def _images(data: str, batch_size: int, size: int, loaded: Any, engine: Path | None, how: dict[str, Any]) -> Data:
    """The images, made ready as the model wants them, or as is kept beside an engine alone."""
    from edp_fx.data import load_data
    from edp_fx.data.base import CROPPING
    from edp_fx.lowering import sidecar

    if loaded is not None:
        preparation = loaded.preparation
    else:
        beside = sidecar.extra(engine) if engine is not None else {}
        preparation = {key: beside[key] for key in ("mean", "std", *CROPPING) if key in beside}
        preparation |= {key: how[key] for key in ("mean", "std") if how[key]}
    return load_data(data, batch_size=batch_size, img_size=size, augment=False, **preparation)


def _table(results: Mapping[str, Score]) -> str:
    from tabulate import tabulate

    first = next(iter(results.values()))
    if first.top5 is not None:
        headers = ["what", "images", "top-1 %", "top-5 %", "loss"]
        shown = {name: [f"{100 * one.accuracy:.2f}", f"{100 * (one.top5 or 0):.2f}"] for name, one in results.items()}
    elif first.metric is not None:
        headers = ["what", "images", first.name, "loss"]
        shown = {name: [f"{one.metric:.4f}"] for name, one in results.items()}
    else:
        headers, shown = ["what", "images", "loss"], {name: [] for name in results}
    rows = [[name, one.images, *shown[name], f"{one.loss:.4f}"] for name, one in results.items()]
    return tabulate(rows, headers=headers, disable_numparse=True)
