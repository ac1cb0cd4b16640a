"""``save`` and ``load``: a directory with ``weights.safetensors`` and ``recipe.json``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import fx

from edp_fx.checkpoint.allowed import is_own_class
from edp_fx.checkpoint.check import check_same
from edp_fx.checkpoint.examples import describe_inputs
from edp_fx.checkpoint.program import SUFFIX, save_program
from edp_fx.checkpoint.structure import describe, rebuild
from edp_fx.checkpoint.weights import weights_to_bytes
from edp_fx.errors import CheckpointError, TraceError, one_line
from edp_fx.extras import installed_version
from edp_fx.files import write
from edp_fx.frontend.unfold import unfold
from edp_fx.inputs import require_graph
from edp_fx.pairs import Pair

WEIGHTS = "weights.safetensors"
RECIPE = "recipe.json"
FORMAT = 1
_LARGEST_RECIPE = 64 * 2**20


def save(
    gm: fx.GraphModule, path: str | Path, example_inputs: Any = None, extra: Mapping[str, Any] | None = None
) -> Path:
    """Write ``gm`` into the directory ``path``: weights (safetensors) and a JSON recipe. No pickle.

    What is to be written is read back first, and has to compute what ``gm`` computes on the example inputs in eval
    mode. Weights that weight norm, spectral norm, a pruning mask or another parametrisation makes are written as they
    are computed with, so what is loaded trains as a plain layer. A layer of a class of your own is written as the
    plain layers and operations of its forward, and a dataclass of outputs as a dictionary: loading needs none of your
    classes.

    A ``path`` that ends in ``.pt2`` becomes one torch.export file instead, in eval mode with the batch size free,
    written once it computes the same as ``gm``. It is for ``torch.export.load``, which runs what a file tells it to
    (it unpickles, and evaluates expressions), so :func:`load` does not take it: keep the directory too.

    Args:
        gm: a traced, usually compressed, graph module.
        path: a directory, made where it is missing, or a ``.pt2`` file. Each file is replaced whole or not at all.
        example_inputs: kept as shapes and dtypes, so that later commands can run the model; may be left out (the
            results are then not compared), but not for ``.pt2``.
        extra: plain JSON kept beside (source model, class names, normalisation …); not for ``.pt2``.

    Raises:
        CheckpointError: the graph calls code of your own, a layer has a forward hook, what would be loaded computes
            something else, or the directory cannot be written.
        LoweringError: for ``.pt2``: torch.export refuses the network, or it fixes its batch size.
    """
    require_graph(gm, "save")
    if Path(path).suffix == SUFFIX:
        if extra:
            raise CheckpointError(f"{path}: a {SUFFIX} file holds no extra facts; save a directory for them")
        return save_program(gm, Path(path), example_inputs)
    directory = Path(path)
    written = _written_out(gm, example_inputs)
    structure, tensors = describe(written)
    blob = weights_to_bytes(tensors)
    recipe = {
        "format": FORMAT,
        "versions": _versions(),
        "layers_kept": _layers(written, structure),
        "inputs": describe_inputs(example_inputs),
        "extra": dict(extra or {}),
        "weights_sha256": hashlib.sha256(blob).hexdigest(),
        "structure": structure,
    }
    try:
        text = json.dumps(recipe, indent=1)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"cannot write {directory}: {error}") from error
    back = _read(json.loads(text)["structure"], blob, directory)
    check_same(gm, back, example_inputs)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot write {directory}: {error.strerror or error}") from error
    write({directory / WEIGHTS: blob, directory / RECIPE: text.encode()}, CheckpointError)
    return directory


def check_saveable(gm: fx.GraphModule, example_inputs: Any = None) -> None:
    """Raise CheckpointError where :func:`save` could not write ``gm``: to be asked before hours of training.

    Args:
        gm: a traced network, with or without pairs.
        example_inputs: what a file would give is run on them and compared, where they are given.
    """
    structure, tensors = describe(_written_out(gm, example_inputs))
    check_same(gm, rebuild(json.loads(json.dumps(structure)), tensors), example_inputs)


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
    gm = _read(recipe["structure"], blob, directory)
    gm.meta["edp_fx.recipe"] = {key: value for key, value in recipe.items() if key != "structure"}
    return gm


def _written_out(gm: fx.GraphModule, example_inputs: Any) -> fx.GraphModule:
    """``gm`` with the forward of each layer of a user's own class in place of its call."""
    try:
        return unfold(gm, example_inputs, is_own_class)
    except TraceError as error:
        raise CheckpointError(
            f"cannot save {error}; loading must not run your code, so write it with operations that can be traced, or "
            "save with torch.export (.pt2)"
        ) from error


def _read(structure: dict[str, Any], blob: bytes, directory: Path) -> fx.GraphModule:
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    try:
        return rebuild(structure, from_bytes(blob))
    except CheckpointError:
        raise
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise CheckpointError(f"{directory} is damaged: {one_line(error)}") from error


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


def _versions() -> dict[str, str]:
    """Of what the network may be made of, as far as it is installed."""
    found = {name: installed_version(name) for name in ("edp_fx", "torch", "timm", "torchvision")}
    return {name: version for name, version in found.items() if version is not None}


def _layers(gm: fx.GraphModule, structure: dict[str, Any]) -> dict[str, Any]:
    """For a reader: the sizes of every layer's weight, and the rank where it is a pair."""
    shapes = structure["tensors"]
    result: dict[str, Any] = {}
    for node in gm.graph.nodes:
        if node.op != "call_module":
            continue
        path = str(node.target)
        home, _, leaf = path.rpartition(".")
        owner = gm.get_submodule(home)
        name = f"{path}.weight"
        shape = shapes.get(structure["tied"].get(name, name), [[]])[0]
        if leaf == "coefficient" and isinstance(owner, Pair):
            result[home] = {"form": "pair", "rank": owner.rank, "outputs": owner.shape[0] * owner.groups}
        elif leaf != "basis" and len(shape) > 1:
            result[path] = {"form": "layer", "weight": shape}
    return result
