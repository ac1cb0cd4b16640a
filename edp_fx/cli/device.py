"""``edp-fx device``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edp_fx.cli.options import RUNTIMES

devices = typer.Typer(no_args_is_help=True, help="Devices that a budget of time can be of.")


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.add_typer(devices, name="device")


@devices.command("list")
def list_() -> None:
    """The devices that come with edp-fx: what they are made of, and which of it was measured."""
    from tabulate import tabulate

    from edp_fx.cost.device import device_names, load_device

    headers = ["device", "runtime", "precision", "10^12 MAC/s", "GB/s", "launch us", "tile", "fitted to measurements"]
    rows = []
    for name in device_names():
        one = load_device(name)
        tile = f"{one.tile_outputs} x {one.tile_inputs}"
        fitted = ", ".join(one.fitted) or "nothing"
        peak, bandwidth = f"{one.peak:.4g}", f"{one.bandwidth:.4g}"
        rows.append([name, one.runtime, one.precision, peak, bandwidth, f"{one.launch:.3g}", tile, fitted])
    typer.echo(tabulate(rows, headers=headers, disable_numparse=True))


@devices.command("measure")
def measure(
    out: Annotated[Path, typer.Option(help="The file to write.")],
    runtime: Annotated[str, typer.Option(help=" | ".join(RUNTIMES))] = "onnxruntime",
    name: Annotated[str, typer.Option(help="What to call it.")] = "mine",
    precision: Annotated[str, typer.Option(help="That the runtime computes in: fp32 | fp16 | bf16.")] = "fp32",
    batch: Annotated[int, typer.Option(help="Images of a call.", min=1)] = 1,
    threads: Annotated[int, typer.Option(help="Of the processor.", min=1)] = 1,
) -> None:
    """Measure this machine's own device: two minutes of layers of many sizes, and five numbers fitted to them."""
    from tabulate import tabulate

    from edp_fx.cost.device import DEFAULT, load_device
    from edp_fx.cost.fitting import measure_device
    from edp_fx.files import check_writable
    from edp_fx.latency import make_runtime

    check_writable(out)
    known = load_device(DEFAULT if runtime == "onnxruntime" else "h200-fp16")
    tile = (known.tile_outputs, known.tile_inputs)
    there = make_runtime(runtime, threads=threads, precision=precision)
    one, probes = measure_device(name, there, precision, batch, (tile,), say=lambda text: typer.echo(text))
    one.write(out)
    rows = [[probe.what, f"{probe.measured:.4g}", f"{probe.fitted:.4g}", f"{probe.residual:+.0%}"] for probe in probes]
    typer.echo(tabulate(rows, headers=["layers", "measured ms", "fitted ms", "residual"], disable_numparse=True))
    typer.echo(f"{out}: use it with --latency 0.5 --device {out}")
