"""Options that several commands take: which model, its weights, its normalisation."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

# those of edp_fx.latency, which --help would wait for
RUNTIMES = ("torch", "graph", "compile", "onnxruntime", "tensorrt", "tensorrt-rtx")
MODEL = "The model"
MODEL_HELP = "A saved directory, a timm name, torchvision:NAME or module.path:callable."


class Numbers(tuple[float, ...]):
    """Numbers with commas between, as one option; of ``tuple[float, ...]`` itself typer makes an option of two."""


def _numbers(text: str) -> Numbers:
    try:
        return Numbers(float(one) for one in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: give a number, or one a channel with commas between") from error


ModelArgument = Annotated[str, typer.Argument(help=MODEL_HELP)]
NumClasses = Annotated[int | None, typer.Option(help="Classes, for a model by name.", min=1, rich_help_panel=MODEL)]
ImgSize = Annotated[int | None, typer.Option(help="Side of the images in pixels.", min=8, rich_help_panel=MODEL)]
Pretrained = Annotated[
    bool, typer.Option("--pretrained", help="Published weights, for a model by name.", rich_help_panel=MODEL)
]
Weights = Annotated[
    Path | None, typer.Option(help="A file of weights of this model: safetensors, .pt or .pth.", rich_help_panel=MODEL)
]
Mean = Annotated[
    Numbers | None,
    typer.Option(
        parser=_numbers,
        metavar="M,M,M",
        help="Mean of the images' normalisation; the model's own.",
        rich_help_panel=MODEL,
    ),
]
Std = Annotated[
    Numbers | None,
    typer.Option(
        parser=_numbers,
        metavar="S,S,S",
        help="Deviation of the images' normalisation; the model's own.",
        rich_help_panel=MODEL,
    ),
]
Task = Annotated[
    str | None,
    typer.Option(help="What a network that does not classify is for: module.path:object with loss, metric and data."),
]

_LOADING: dict[str, tuple[Any, Any]] = {
    "num_classes": (NumClasses, None),
    "img_size": (ImgSize, None),
    "pretrained": (Pretrained, False),
    "weights": (Weights, None),
    "mean": (Mean, None),
    "std": (Std, None),
}


def takes_model_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of :func:`edp_fx.models.load_model`, which reach its parameter ``how`` by name."""
    own = inspect.signature(command, eval_str=True).parameters.values()
    kind = inspect.Parameter.KEYWORD_ONLY
    added = [inspect.Parameter(name, kind, annotation=one, default=value) for name, (one, value) in _LOADING.items()]

    @functools.wraps(command)
    def with_options(*args: Any, **kwargs: Any) -> None:
        how = {name: kwargs.pop(name) for name in _LOADING}
        command(*args, **kwargs, how=how)

    shown = [one.replace(kind=kind) for one in own if one.name != "how"]
    with_options.__signature__ = inspect.Signature([*shown, *added])  # type: ignore[attr-defined]
    with_options.__annotations__ = {one.name: one.annotation for one in [*shown, *added]}
    return with_options
