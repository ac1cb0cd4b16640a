"""``edp-fx evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("evaluate")(evaluate)


def evaluate(
    data: Annotated[str, typer.Option(help="digits, fashion-mnist, folder:PATH or torchvision:NAME:PATH.")],
    model: Annotated[
        str | None,
        typer.Argument(help="A saved directory, a timm name, torchvision:NAME or module.path:callable."),
    ] = None,
    engine: Annotated[
        Path | None,
        typer.Option(help="An engine (NVIDIA GPU) or .onnx file to evaluate, alone or beside the model."),
    ] = None,
    split: Annotated[str, typer.Option(help="test or val.")] = "test",
    batch_size: Annotated[int, typer.Option(help="Images a batch.")] = 64,
    num_classes: Annotated[int | None, typer.Option(help="Classes, for a model by name.")] = None,
    img_size: Annotated[int | None, typer.Option(help="Image side in pixels, for a model by name.")] = None,
    pretrained: Annotated[bool, typer.Option(help="Published weights, for a model by name.")] = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the figures as JSON.")] = None,
) -> None:
    """Accuracy of a model, an engine, or both on a data set."""
    import json
    from dataclasses import asdict

    import torch
    from tabulate import tabulate

    from edp_fx.data import check_spec, load_data
    from edp_fx.errors import DataError, ModelError
    from edp_fx.files import check_writable, write
    from edp_fx.lowering.accuracy import Accuracy, accuracy
    from edp_fx.lowering.engine import load_engine

    if model is None and engine is None:
        raise ModelError("nothing to evaluate: name a model, an --engine, or both")
    if split not in ("test", "val"):
        raise DataError(f"--split {split}: test or val")
    if json_path is not None:
        check_writable(json_path)
    check_spec(data)
    runner = load_engine(engine) if engine is not None else None
    loaded: Any = None
    if model is not None:
        from edp_fx.models import load_model

        loaded = load_model(model, num_classes=num_classes, img_size=img_size, pretrained=pretrained)
    shown = loaded.example_inputs if loaded is not None else runner.example_inputs() if runner else ()
    normalisation = _normalisation(loaded, pretrained) if loaded is not None else {}
    images = load_data(data, batch_size=batch_size, img_size=int(shown[0].shape[-1]), augment=False, **normalisation)
    loader = images.test if split == "test" else images.val
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
    typer.echo(f"{images.name}, {split} ({images.splits})")
    typer.echo(tabulate(rows, headers=headers, disable_numparse=True))
    if json_path is not None:
        text = json.dumps({name: asdict(one) for name, one in results.items()}, indent=1) + "\n"
        write({json_path: text.encode()})


def _normalisation(loaded: Any, pretrained: bool) -> dict[str, Any]:
    """That of the weights, where they came with one; else the data set's own, as in training."""
    saved = getattr(loaded.model, "meta", {}).get("edp_fx.recipe", {}).get("extra", {})
    return {"mean": loaded.mean, "std": loaded.std} if pretrained or "mean" in saved else {}
