"""``edp-fx evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edp_fx.cli.options import MODEL_HELP, ImgSize, Mean, NumClasses, Pretrained, Std, Weights


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("evaluate")(evaluate)


def evaluate(
    data: Annotated[str, typer.Option(help="digits, fashion-mnist, folder:PATH or torchvision:NAME:PATH.")],
    model: Annotated[str | None, typer.Argument(help=MODEL_HELP)] = None,
    engine: Annotated[
        Path | None,
        typer.Option(help="An engine (NVIDIA GPU) or .onnx file to evaluate, alone or beside the model."),
    ] = None,
    split: Annotated[str, typer.Option(help="test, val, train or all: every image there is.")] = "test",
    batch_size: Annotated[int, typer.Option(help="Images a batch.", min=1)] = 64,
    num_classes: NumClasses = None,
    img_size: ImgSize = None,
    pretrained: Pretrained = False,
    weights: Weights = None,
    mean: Mean = None,
    std: Std = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the figures as JSON.")] = None,
) -> None:
    """Accuracy of a model, an engine, or both on a data set.

    Example: edp-fx evaluate resnet18.a1_in1k --pretrained --data folder:PATH --split all
    """
    from dataclasses import asdict

    import torch
    from tabulate import tabulate

    from edp_fx.data import SPLITS, check_spec, load_data
    from edp_fx.errors import DataError, ModelError
    from edp_fx.files import check_writable, write_json
    from edp_fx.lowering import sidecar
    from edp_fx.lowering.accuracy import Accuracy, accuracy
    from edp_fx.lowering.engine import load_engine

    if model is None and engine is None:
        raise ModelError("nothing to evaluate: name a model, an --engine, or both")
    if split not in SPLITS:
        raise DataError(f"--split {split}: unknown; take one of {', '.join(SPLITS)}")
    if json_path is not None:
        check_writable(json_path)
    check_spec(data)
    runner = load_engine(engine) if engine is not None else None
    loaded: Any = None
    beside = sidecar.extra(engine) if engine is not None else {}
    normalisation: dict[str, Any] = {"mean": mean or beside.get("mean"), "std": std or beside.get("std")}
    if model is not None:
        from edp_fx.models import load_model

        loaded = load_model(
            model,
            num_classes=num_classes,
            img_size=img_size,
            pretrained=pretrained,
            weights=weights,
            mean=mean,
            std=std,
        )
        normalisation = loaded.normalisation
    shown = loaded.example_inputs if loaded is not None else runner.example_inputs() if runner else ()
    images = load_data(data, batch_size=batch_size, img_size=int(shown[0].shape[-1]), augment=False, **normalisation)
    loader = images.loader(split)
    if loaded is not None:
        typer.echo(loaded.describe())
        loaded.check_classes(images.num_classes, images.classes)
    typer.echo(f"{images.describe()}\nevaluated on: {split}")
    results: dict[str, Accuracy] = {}
    if loaded is not None and model is not None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        results[model] = accuracy(loaded.model.to(device).eval(), loader, device=device)
    if runner is not None:
        results[str(engine)] = accuracy(runner, loader, batch=runner.batch)
    headers = ["what", "images", "top-1 %", "top-5 %", "loss"]
    rows = [
        [name, one.images, f"{100 * one.top1:.2f}", f"{100 * one.top5:.2f}", f"{one.loss:.4f}"]
        for name, one in results.items()
    ]
    typer.echo(tabulate(rows, headers=headers, disable_numparse=True))
    if json_path is not None:
        write_json({name: asdict(one) for name, one in results.items()}, json_path)
