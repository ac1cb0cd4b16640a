"""``edp-fx compress``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_DATA = (
    "digits | fashion-mnist | folder:PATH | torchvision:NAME:PATH. fashion-mnist is looked for in "
    "data/FashionMNIST/raw, ~/.cache/edp_fx, ~/.local/share/datasets, "
    "/usr/local/share/datasets and /usr/share/datasets (where Debian's package dataset-fashion-mnist "
    "puts it), else downloaded."
)
_SHARE = "share of the dense network, in (0, 1]"


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("compress")(compress)


def compress(
    model: Annotated[
        str, typer.Argument(help="timm name, torchvision:NAME, module.path:callable or a saved directory.")
    ],
    data: Annotated[str, typer.Option(help=_DATA)],
    out: Annotated[Path, typer.Option(help="Directory of the results.")],
    epochs: Annotated[int, typer.Option(help="0 truncates by singular values without training.", min=0)],
    macs: Annotated[float | None, typer.Option(help=f"Budget: multiply-accumulates, {_SHARE}.")] = None,
    params: Annotated[float | None, typer.Option(help=f"Budget: parameters, {_SHARE}.")] = None,
    latency: Annotated[
        float | None, typer.Option(help=f"Budget: measured time of one image, {_SHARE}, or milliseconds above 1.")
    ] = None,
    runtime: Annotated[
        str, typer.Option(help="onnxruntime | torch | tensorrt: what --latency is measured on.")
    ] = "onnxruntime",
    align: Annotated[
        int, typer.Option(help="Keep multiples of so many channels and ranks, within the budget.", min=1)
    ] = 1,
    baseline: Annotated[bool, typer.Option(help="Also train the dense network, to compare.")] = True,
    img_size: Annotated[int | None, typer.Option(help="Side of the images in pixels.", min=8)] = None,
    batch_size: Annotated[int, typer.Option(help="Images a step, over all processes.", min=1)] = 32,
    optimizer: Annotated[str, typer.Option(help="adamw | sgd")] = "adamw",
    lr: Annotated[float | None, typer.Option(help="Peak learning rate; the optimiser's default.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="The optimiser's default.")] = None,
    seed: Annotated[int, typer.Option(help="Reproduces the run.")] = 0,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Start from published weights.")] = False,
    policy: Annotated[str, typer.Option(help="budget | lambda (fixed strengths, no budget)")] = "budget",
    strength: Annotated[float, typer.Option(help="λ of the policy lambda.", min=0.0)] = 1e-3,
    importance: Annotated[str, typer.Option(help="taylor | norm | singular")] = "taylor",
    allow_inexact: Annotated[
        bool, typer.Option("--allow-inexact", help="Also prune channels whose removal is not exact.")
    ] = False,
    kinds: Annotated[
        str,
        typer.Option(
            help="What may go: rank, channel, head (whole attention heads), kernel (a convolution becomes a depthwise "
            "and a pointwise one), branch (of a residual connection, as a whole); the last two to a budget of MACs."
        ),
    ] = "rank,channel",
    teacher: Annotated[str | None, typer.Option(help="A model or saved directory to distil from.")] = None,
    ema: Annotated[float, typer.Option(help="Decay of the averaged weights kept as the result; 0: none.")] = 0.0,
    accumulate: Annotated[int, typer.Option(help="Batches per optimiser step.", min=1)] = 1,
    mixed_precision: Annotated[str, typer.Option(help="no | bf16 | fp16, of training")] = "no",
    deterministic: Annotated[bool, typer.Option(help="The same seed gives the same bits on a GPU; slower.")] = True,
    workers: Annotated[int, typer.Option(help="Processes that read image files.", min=0)] = 0,
    target: Annotated[
        str | None, typer.Option(help="tensorrt-rtx | tensorrt | onnxruntime | onnx; by the machine.")
    ] = None,
    precision: Annotated[str, typer.Option(help="Of the engine: fp32 | fp16 | bf16")] = "fp32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the results in --out.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run in --out.")] = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the report here, too.")] = None,
) -> None:
    """Compress a model to a budget in one training run, and lower it to an engine."""
    from rich.console import Console

    from edp_fx.compressor.budget import Budget
    from edp_fx.files import write_json
    from edp_fx.job import Job, Runner
    from edp_fx.summary import print_report
    from edp_fx.train.progress import RichWatcher
    from edp_fx.train.recipe import Recipe

    given = {
        name: value for name, value in (("macs", macs), ("params", params), ("latency", latency)) if value is not None
    }
    job = Job(
        model=model,
        data=data,
        budget=Budget(**given) if given else None,
        out=out,
        recipe=Recipe(
            epochs=epochs,
            optimizer=optimizer,
            lr=lr,
            weight_decay=weight_decay,
            accumulate=accumulate,
            precision=mixed_precision,
            ema=ema,
            seed=seed,
            deterministic=deterministic,
        ),
        baseline=baseline,
        img_size=img_size,
        batch_size=batch_size,
        workers=workers,
        pretrained=pretrained,
        policy=policy,
        strength=strength,
        importance=importance,
        allow_inexact=allow_inexact,
        kinds=tuple(name.strip() for name in kinds.split(",") if name.strip()),
        align=align,
        runtime=runtime,
        teacher=teacher,
        target=target,
        precision=precision,
        overwrite=overwrite,
        resume=resume,
    )
    console = Console()
    with RichWatcher(console) as watcher:
        runner = Runner(job, watcher, say=lambda text: console.print(text, highlight=False))
        try:
            report = runner.run()
        except KeyboardInterrupt:
            watcher.end()
            console.print(runner.interrupted(), highlight=False, soft_wrap=True)
            raise
    if report:
        print_report(report, console)
        if json_path is not None:
            write_json(report, json_path)
