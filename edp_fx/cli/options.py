"""Options that several commands take: which model, its weights, its normalisation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# those of edp_fx.latency, which --help would wait for
RUNTIMES = ("torch", "graph", "compile", "onnxruntime", "tensorrt", "tensorrt-rtx")
MODEL_HELP = "A saved directory, a timm name, torchvision:NAME or module.path:callable."


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(one) for one in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: give a number, or one a channel with commas between") from error


ModelArgument = Annotated[str, typer.Argument(help=MODEL_HELP)]
NumClasses = Annotated[int | None, typer.Option(help="Classes, for a model by name.", min=1)]
ImgSize = Annotated[int | None, typer.Option(help="Side of the images in pixels.", min=8)]
Pretrained = Annotated[bool, typer.Option("--pretrained", help="Published weights, for a model by name.")]
Weights = Annotated[Path | None, typer.Option(help="A file of weights of this model: safetensors, .pt or .pth.")]
Mean = Annotated[
    tuple[float, ...] | None,
    typer.Option(parser=_numbers, metavar="M,M,M", help="Mean of the images' normalisation; the model's own."),
]
Std = Annotated[
    tuple[float, ...] | None,
    typer.Option(parser=_numbers, metavar="S,S,S", help="Deviation of the images' normalisation; the model's own."),
]
