"""``edp-fx compress``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edp_fx.cli.options import MODEL_HELP, RUNTIMES, Mean, Std, Task, Weights
from edp_fx.lowering.targets import TARGETS

EXAMPLE = "Example: edp-fx compress resnet18 --data digits --macs 0.4 --epochs 10 --out demo"
SHARE = "share of the dense network, in (0, 1]"
FIELDS = (
    "kinds, policy, importance, start, end, decisions, removals, floor, align, pairs, allow_inexact, strength, "
    "teacher, distill, temperature; epochs, optimizer, lr, weight_decay, warmup, label_smoothing, accumulate, "
    "clip_grad, mixed_precision, ema, seed, deterministic, compiled"
)
BUDGET, METHOD, TRAINING, RESULT = "How small", "By which method", "Training", "Results"


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("compress", epilog=EXAMPLE)(compress)


def compress(
    model: Annotated[str | None, typer.Argument(help=MODEL_HELP)] = None,
    data: Annotated[
        str | None, typer.Option(help="digits | fashion-mnist | folder:PATH | torchvision:NAME:PATH")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the results.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the images; 0: no training.")] = None,
    macs: Annotated[float | None, typer.Option(help=f"Multiply-accumulates, {SHARE}.", rich_help_panel=BUDGET)] = None,
    params: Annotated[float | None, typer.Option(help="Parameters, a share.", rich_help_panel=BUDGET)] = None,
    latency: Annotated[
        float | None,
        typer.Option(help="Time on a device, a share, or milliseconds above 1.", rich_help_panel=BUDGET),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Which: a name of `edp-fx device list`, or a file of `edp-fx device measure`. "
            "Default: a processor under onnxruntime.",
            rich_help_panel=BUDGET,
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Images of a call there. Default: 1.", rich_help_panel=BUDGET)
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(help=f"What runs the network there: {' | '.join(RUNTIMES)}.", rich_help_panel=BUDGET),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="scratch | trained | paper | one-shot | truncate. By itself: one-shot without training, trained for "
            "weights that are, else scratch.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help=f"A field of the method or the recipe: {FIELDS}.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|NAME",
            help="YAML of a run, its report.json, or a name of edp-fx recipes; options go before it.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="A model or saved directory to distil from.", rich_help_panel=METHOD)
    ] = None,
    pretrained: Annotated[
        bool | None, typer.Option("--pretrained", help="Start from published weights.", rich_help_panel=TRAINING)
    ] = None,
    task: Task = None,
    weights: Weights = None,
    mean: Mean = None,
    std: Std = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.", rich_help_panel=TRAINING)] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images a step, over all processes.", rich_help_panel=TRAINING)
    ] = None,
    img_size: Annotated[
        int | None, typer.Option(help="Side of the images in pixels.", rich_help_panel=TRAINING)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Reproduces the run.", rich_help_panel=TRAINING)] = None,
    mixed_precision: Annotated[str | None, typer.Option(help="fp32 | bf16 | fp16", rich_help_panel=TRAINING)] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that read image files.", rich_help_panel=TRAINING)
    ] = None,
    baseline: Annotated[
        bool | None,
        typer.Option(
            "--baseline/--no-baseline", help="Also train the dense network, to compare.", rich_help_panel=TRAINING
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help=f"{' | '.join(TARGETS)}; by the machine.", rich_help_panel=RESULT),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of the engine: fp32 | fp16 | bf16", rich_help_panel=RESULT)
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the results in --out.", rich_help_panel=RESULT)
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the interrupted run in --out.",
            rich_help_panel=RESULT,
        ),
    ] = False,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the report here, too.", rich_help_panel=RESULT)
    ] = None,
) -> None:
    """Compress a model to a budget in one training run, and lower it to an engine."""
    from rich.console import Console

    from edp_fx.errors import EdpError
    from edp_fx.files import check_writable, write_json
    from edp_fx.job import RUN, Job, Runner, find_recipe, read_plan
    from edp_fx.summary import print_report
    from edp_fx.train.progress import RichWatcher

    if out is None:
        raise EdpError("--out DIR: say where the results go")
    if json_path is not None:
        check_writable(json_path)
    given = {
        "model": {
            "spec": model,
            "pretrained": pretrained,
            "weights": str(weights) if weights is not None else None,
            "mean": mean,
            "std": std,
            "teacher": teacher,
        },
        "data": {"spec": data, "img_size": img_size, "batch_size": batch_size, "workers": workers},
        "method": {
            "preset": method,
            "macs": macs,
            "params": params,
            "latency": latency,
            "device": device,
            "batch": batch,
        },
        "recipe": {"epochs": epochs, "lr": lr, "seed": seed, "mixed_precision": mixed_precision},
        "lower": {"target": target, "precision": precision},
        "baseline": baseline,
        "runtime": runtime,
        "task": task,
    }
    if resume and recipe is None and (out / RUN).exists():
        recipe = out / RUN
    if recipe is not None:
        recipe = find_recipe(recipe)
    job = Job(read_plan(recipe, given, sets or ()), out, overwrite=overwrite, resume=resume)
    console = Console()
    with RichWatcher(console) as watcher:
        runner = Runner(job, watcher, say=lambda text: console.print(text, highlight=False, soft_wrap=True))
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
