"""``edp-fx bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edp_fx.cli.options import RUNTIMES, ImgSize, NumClasses


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("bench", epilog="Example: edp-fx bench resnet18 small --backend onnxruntime")(bench)


def bench(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Models to time in turns, the first as the baseline: dense first, then its saved directory."
        ),
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(help=f"{' | '.join(RUNTIMES)}; repeat for several. Default: torch, compile, onnxruntime."),
    ] = None,
    engine: Annotated[
        list[Path] | None,
        typer.Option(help="Engine (NVIDIA GPU) or .onnx file to time too; repeat, the first as the baseline."),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Batch size; repeat for a sweep. Default: 1 and 8.", min=1)
    ] = None,
    seconds: Annotated[float, typer.Option(help="Time for each backend and batch size.", min=0)] = 2.0,
    threads: Annotated[int | None, typer.Option(help="CPU threads. Default: torch's own.", min=1)] = None,
    cuda_graph: Annotated[bool, typer.Option(help="Capture the engines' launches once and replay them.")] = False,
    precision: Annotated[str, typer.Option(help="Of the models: fp32 | fp16 | bf16.")] = "fp32",
    num_classes: NumClasses = None,
    img_size: ImgSize = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the rows as JSON.")] = None,
) -> None:
    """Latency of models and engines against each other: medians and 95th percentiles, measured in turns."""
    import json

    import torch
    from tabulate import tabulate

    from edp_fx.errors import LoweringError
    from edp_fx.files import check_writable, write
    from edp_fx.latency.benchmark import BACKENDS, Timing, bench_engines, bench_models

    if not models and not engine:
        raise LoweringError("nothing to time: name models, or engines with --engine")
    if json_path is not None:
        check_writable(json_path)
    if threads is not None:
        torch.set_num_threads(threads)
    batches = batch or [1, 8]
    rows: list[Timing] = []
    # Engines first: without a GPU they are refused before minutes of timing.
    if engine:
        rows += bench_engines(engine, batches=batches, seconds=seconds, cuda_graph=cuda_graph)
    if models:
        from edp_fx.models import load_model

        loaded = {spec: load_model(spec, num_classes=num_classes, img_size=img_size) for spec in models}
        pairs = {spec: (one.model, one.example_inputs) for spec, one in loaded.items()}
        rows += bench_models(pairs, backends=backend or BACKENDS, batches=batches, seconds=seconds, precision=precision)
    headers = ["backend", "batch", "model", "median ms", "p95 ms", "images/s", "runs", "speed-up"]
    table = []
    for row in (one.to_json() for one in rows):
        if row["median_ms"] is None:
            table.append([row["backend"], row["batch"], row["model"], row["reason"]])
            continue
        figures = [
            f"{row['median_ms']:.3f}",
            f"{row['p95_ms']:.3f}",
            f"{row['images_per_s']:.0f}",
            row["runs"],
        ]
        speedup = f"{row['speedup']:.2f}x" if row["speedup"] is not None else ""
        table.append([row["backend"], row["batch"], row["model"], *figures, speedup])
    typer.echo(tabulate(table, headers=headers, disable_numparse=True))
    if json_path is not None:
        text = json.dumps([row.to_json() for row in rows], indent=1) + "\n"
        write({json_path: text.encode()})
