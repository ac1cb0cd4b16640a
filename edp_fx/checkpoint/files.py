"""``save`` and ``load``: a directory with ``weights.safetensors`` and ``recipe.json``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from edp_fx.checkpoint.program import SUFFIX, save_program
from edp_fx.checkpoint.structure import describe, rebuild
from edp_fx.errors import CheckpointError
from edp_fx.files import write
from edp_fx.pairs import Pair

WEIGHTS = "weights.safetensors"
RECIPE = "recipe.json"
FORMAT = 1
_LARGEST_RECIPE = 64 * 2**20


def save(
    gm: fx.GraphModule, path: str | Path, example_inputs: Any = None, extra: Mapping[str, Any] | None = None
) -> Path:
    """Write ``gm`` into the directory ``path``: weights (safetensors) and a JSON recipe. No pickle.

    A ``path`` that ends in ``.pt2`` becomes one torch.export file instead, in eval mode with the batch size free,
    written once it computes the same as ``gm``. It is for ``torch.export.load``, which runs what a file tells it to
    (it unpickles, and evaluates expressions), so :func:`load` does not take it: keep the directory too.

    Args:
        gm: a traced, usually compressed, graph module.
        path: a directory, made where it is missing, or a ``.pt2`` file. Each file is replaced whole or not at all.
        example_inputs: kept as shapes and dtypes, so that later commands can run the model; may be left out, but
            not for ``.pt2``.
        extra: plain JSON kept beside (source model, class names, normalisation …); not for ``.pt2``.

    Raises:
        CheckpointError: the graph calls code of your own, or the directory cannot be written.
        LoweringError: for ``.pt2``: torch.export refuses the network, or it fixes its batch size.
    """
    from safetensors.torch import save as to_bytes

    if Path(path).suffix == SUFFIX:
        if extra:
            raise CheckpointError(f"{path}: a {SUFFIX} file holds no extra facts; save a directory for them")
        return save_program(gm, Path(path), example_inputs)
    directory = Path(path)
    structure, tensors = describe(gm)
    blob = to_bytes({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
    recipe = {
        "format": FORMAT,
        "versions": _versions(),
        "layers_kept": _layers(gm),
        "inputs": _shapes(example_inputs),
        "extra": dict(extra or {}),
        "weights_sha256": hashlib.sha256(blob).hexdigest(),
        "structure": structure,
    }
    try:
        text = json.dumps(recipe, indent=1)
        directory.mkdir(parents=True, exist_ok=True)
        write({directory / WEIGHTS: blob, directory / RECIPE: text.encode()}, CheckpointError)
    except (OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"cannot write {directory}: {error}") from error
    return directory


def load(path: str | Path) -> fx.GraphModule:
    """The model in the directory ``path``, in eval mode, of plain torch modules; its recipe in ``meta``.

    Raises CheckpointError, having executed nothing, where a file is missing, damaged, truncated, of another model, or
    names anything but layers and tensor operations.
    """
    if Path(path).suffix == SUFFIX and not Path(path).is_dir():
        raise CheckpointError(
            f"{path}: loading a {SUFFIX} file can execute code from it, so edp_fx only writes them; load the saved "
            "directory, or call torch.export.load yourself on a file you trust"
        )
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    directory = Path(path)
    recipe = read_recipe(directory)
    try:
        blob = (directory / WEIGHTS).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{directory} has no readable {WEIGHTS}: {error.strerror}") from error
    if hashlib.sha256(blob).hexdigest() != recipe["weights_sha256"]:
        raise CheckpointError(
            f"{directory / WEIGHTS} is damaged, truncated or of another model: its checksum is not the recipe's"
        )
    try:
        tensors = from_bytes(blob)
        gm = rebuild(recipe["structure"], tensors)
    except CheckpointError:
        raise
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        first = (str(error) or type(error).__name__).split("\n")[0]
        raise CheckpointError(f"{directory} is damaged: {first}") from error
    gm.meta["edp_fx.recipe"] = {key: value for key, value in recipe.items() if key != "structure"}
    return gm


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The JSON recipe of a saved directory, checked for its form."""
    file = Path(path) / RECIPE
    try:
        if file.stat().st_size > _LARGEST_RECIPE:
            raise CheckpointError(f"{file} is larger than any recipe: it is not read")
        recipe = json.loads(file.read_text())
    except OSError as error:
        raise CheckpointError(f"{path} is no saved model: {RECIPE} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged: it is not JSON") from error
    if not isinstance(recipe, dict) or not isinstance(recipe.get("structure"), dict) or "weights_sha256" not in recipe:
        raise CheckpointError(f"{file} is no recipe of edp_fx")
    if recipe.get("format") != FORMAT:
        raise CheckpointError(f"{file} has format {recipe.get('format')!r}, this version reads {FORMAT}: update edp_fx")
    return recipe


def example_inputs(recipe: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Random inputs of the shapes and dtypes a recipe was saved with. Raises CheckpointError where there are none."""
    if not recipe.get("inputs"):
        raise CheckpointError("the saved model does not say its input shapes: save it with example_inputs")
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator).to(getattr(torch, dtype)) for shape, dtype in recipe["inputs"])


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("edp_fx", "torch", "timm", "torchvision")}


def _shapes(inputs: Any) -> list[list[Any]]:
    if inputs is None:
        return []
    tensors = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
    return [[list(one.shape), str(one.dtype).removeprefix("torch.")] for one in tensors]


def _layers(gm: fx.GraphModule) -> dict[str, Any]:
    """For a reader: every layer's channels, and its rank where it is a pair."""
    result: dict[str, Any] = {}
    for node in gm.graph.nodes:
        if node.op != "call_module":
            continue
        home, _, leaf = str(node.target).rpartition(".")
        owner = gm.get_submodule(home)
        if leaf == "coefficient" and isinstance(owner, Pair):
            result[home] = {"form": "pair", "rank": owner.rank, "outputs": owner.shape[0] * owner.groups}
        elif leaf != "basis":
            weight = getattr(gm.get_submodule(str(node.target)), "weight", None)
            if isinstance(weight, Tensor) and weight.ndim > 1:
                result[str(node.target)] = {"form": "layer", "weight": list(weight.shape)}
    return result
