"""``edp-fx lower``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edp_fx.cli.options import ModelArgument, takes_model_options
from edp_fx.lowering.targets import TARGETS

if TYPE_CHECKING:
    from edp_fx.lowering import LowerResult


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(
        "lower", epilog="Example: edp-fx lower small --target tensorrt-rtx --precision fp16 --out small.engine"
    )(takes_model_options(lower))


def lower(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(help="The file to write; a JSON sidecar goes beside it.")],
    target: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(TARGETS)}. Default: by the machine, TensorRT.")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16, bf16 or int8.")] = "fp32",
    batch: Annotated[str, typer.Option(help="Batch size N, or MIN:OPT:MAX.")] = "1:8:32",
    image: Annotated[
        str | None, typer.Option(help="Height and width, MIN:OPT:MAX, where the model takes several.")
    ] = None,
    calibrate: Annotated[str | None, typer.Option(help="Data set whose training images int8 calibrates on.")] = None,
    sm: Annotated[
        list[str] | None,
        typer.Option(help="Compute capability such as sm86; repeat for several. TensorRT-RTX only."),
    ] = None,
    timing_cache: Annotated[Path | None, typer.Option(help="Timing cache to read and rewrite. TensorRT only.")] = None,
    workspace: Annotated[int | None, typer.Option(help="Most scratch memory while building, in MiB.")] = None,
    onnx: Annotated[Path | None, typer.Option(help="Keep the ONNX file the engine is built from.")] = None,
    layers: Annotated[bool, typer.Option(help="Print the layers of the fused plan.")] = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the result as JSON.")] = None,
    *,
    how: dict[str, Any],
) -> None:
    """Turn a model into a TensorRT engine or ONNX file, checked against torch on the way."""
    import json

    from rich.console import Console

    from edp_fx.files import check_writable, write
    from edp_fx.lowering import lower as run_lower
    from edp_fx.models import load_model

    if json_path is not None:
        check_writable(json_path)
    loaded = load_model(model, **how)
    loader = _calibration(calibrate, loaded) if calibrate is not None else None
    console = Console(stderr=True)
    with console.status("lowering") as status:

        def progress(what: str, done: int, steps: int) -> None:
            status.update(f"{what} {done}/{steps}" if steps else what)

        notify: Callable[[str, int, int], None] = progress
        result = run_lower(
            loaded.model,
            loaded.example_inputs,
            out,
            target=target,
            precision=precision,
            batch=batch,
            image=image,
            calibration_loader=loader,
            compute_capabilities=tuple(sm or ()),
            timing_cache=timing_cache,
            workspace=workspace * 2**20 if workspace is not None else None,
            onnx_path=onnx,
            source=model,
            extra=loaded.facts,
            progress=notify,
        )
    typer.echo(_summary(result))
    if layers and result.plan is not None:
        typer.echo(_layer_table(result))
    if json_path is not None:
        write({json_path: (json.dumps(result.to_json(), indent=1) + "\n").encode()})


def _calibration(spec: str, loaded: Any) -> Any:
    from edp_fx.data import load_data

    side = int(loaded.example_inputs[0].shape[-1])
    return load_data(spec, batch_size=32, img_size=side, augment=False, **loaded.preparation).train


def _summary(result: LowerResult) -> str:
    from tabulate import tabulate

    checks = result.verification
    rows: list[tuple[str, object]] = [
        ("file", result.path),
        (
            "target",
            f"{result.target} {result.precision}" + (f" ({result.builder})" if result.builder else ""),
        ),
        ("bytes", f"{result.bytes:,}"),
    ]
    if result.plan is not None:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(result.plan.kinds().items()))
        rows += [
            ("weights memory", f"{result.plan.weights_memory or 0:,} bytes"),
            ("activation memory", f"{result.plan.activation_memory or 0:,} bytes"),
            ("plan", f"{len(result.plan.layers)} layers: {kinds}"),
        ]
    batches = sorted({check.batch for check in checks.checks})
    for question in dict.fromkeys(check.question for check in checks.checks):
        worst = max((c for c in checks.checks if c.question == question), key=lambda c: c.max_rel_diff)
        rows.append(
            (
                f"against torch ({question})",
                f"max {worst.max_abs_diff:.2e}, {worst.max_rel_diff:.2e} of its deviation; batch {batches}",
            )
        )
    rows += [("not checked", text) for text in checks.not_run]
    rows.append(("alignment", result.alignment.summary()))
    return tabulate(rows, tablefmt="plain")


def _layer_table(result: LowerResult) -> str:
    from tabulate import tabulate

    assert result.plan is not None
    rows = [
        (one.kind, "; ".join(one.inputs), "; ".join(one.outputs), ", ".join(one.sources)[:60])
        for one in result.plan.layers
    ]
    return "\n" + tabulate(rows, headers=["kind", "inputs", "outputs", "from"])
