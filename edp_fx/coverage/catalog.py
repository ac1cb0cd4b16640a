"""The list of models a sweep chooses from: every timm architecture with its family and size, and torchvision's."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from typing import Any

from edp_fx.coverage import zoos
from edp_fx.errors import ModelError
from edp_fx.extras import need

_FILE = "timm_models.json"


@dataclass(frozen=True)
class Entry:
    """A model of the catalogue.

    Attributes:
        name: as :func:`edp_fx.models.load_model` takes it.
        family: the module of timm that defines it, or "torchvision.classification" and the like.
        params: number of parameters, 0 where not recorded.
        zoo: the library it is of, where :mod:`edp_fx.coverage.zoos` builds it.
    """

    name: str
    family: str
    params: int = 0
    zoo: str | None = None


@cache
def _recorded() -> dict[str, int]:
    return json.loads((resources.files("edp_fx.coverage") / _FILE).read_text())


def timm_entries() -> list[Entry]:
    """Every architecture of the installed timm, by family; sizes from the recorded list."""
    need("models", "coverage")
    import timm
    from timm.models import _registry

    sizes = _recorded()
    return [Entry(name, _registry._model_to_module[name], sizes.get(name, 0)) for name in sorted(timm.list_models())]


def torchvision_entries() -> list[Entry]:
    """torchvision's classification and segmentation models, and the backbones of its detection models."""
    from torchvision.models import detection, get_model_weights, list_models, quantization, segmentation, video
    from torchvision.models import optical_flow as flow

    groups = {"segmentation": list_models(segmentation), "detection": list_models(detection)}
    other = {name for module in (detection, segmentation, quantization, video, flow) for name in list_models(module)}
    groups["classification"] = [name for name in list_models() if name not in other]
    return [
        Entry(f"torchvision:{name}", f"torchvision.{group}", next(iter(get_model_weights(name))).meta["num_params"])
        for group, names in sorted(groups.items())
        for name in names
    ]


def smallest(entries: Iterable[Entry]) -> list[Entry]:
    """The entry with the fewest parameters of each family; of those without a recorded size, the first."""
    best: dict[str, Entry] = {}
    for entry in entries:
        known = best.get(entry.family)
        if known is None or (entry.params or 1 << 60, entry.name) < (known.params or 1 << 60, known.name):
            best[entry.family] = entry
    return [best[family] for family in sorted(best)]


def choose(
    names: Iterable[str] = (),
    pattern: str | None = None,
    families: str | None = None,
    max_params: float = 100e6,
    zoo: str | None = None,
) -> list[Entry]:
    """The models a command line asks for.

    Args:
        names: models by name, of any source.
        pattern: a glob over catalogue names.
        families: "smallest", one of each timm family, or "all", every timm model up to ``max_params``, one of each
            family above and every torchvision model.
        max_params: bound for "all"; sizes not recorded pass.
        zoo: another library, of :data:`edp_fx.coverage.zoos.ZOOS`; ``names`` and ``pattern`` then choose among its
            models, all of them where neither is given.

    Raises:
        ModelError: nothing matches.
    """
    if zoo is not None:
        return _of_zoo(zoo, tuple(names), pattern)
    if families not in (None, "smallest", "all"):
        raise ModelError(f"--families {families!r} is not known; choose 'smallest' or 'all'")
    chosen: dict[str, Entry] = {}
    timm_only = timm_entries()
    catalogue = timm_only + torchvision_entries()
    known = {entry.name: entry for entry in catalogue}
    for name in names:
        chosen[name] = known.get(name, Entry(name, name.split(":")[0] if ":" in name else "other"))
    if pattern:
        chosen.update({e.name: e for e in catalogue if fnmatchcase(e.name, pattern)})
    if families:
        chosen.update({e.name: e for e in smallest(timm_only)})
    if families == "all":
        chosen.update({e.name: e for e in catalogue if e.params <= max_params or e not in timm_only})
    if not chosen:
        raise ModelError("no model chosen: give names, --filter GLOB or --families smallest|all")
    return sorted(chosen.values(), key=lambda entry: entry.params)  # quick ones first


def _of_zoo(zoo: str, names: tuple[str, ...], pattern: str | None) -> list[Entry]:
    every = [name.partition(":")[2] for name in zoos.names(zoo)]
    chosen = [n for n in every if n in names or (pattern and fnmatchcase(n, pattern)) or not (names or pattern)]
    unknown = set(names) - set(every)
    if unknown or not chosen:
        raise ModelError(f"zoo {zoo} has no {min(unknown, default=pattern)!r}; it has {', '.join(every)}")
    return [Entry(f"{zoo}:{name}", zoo, zoo=zoo) for name in chosen]


def record(path: str) -> dict[str, Any]:
    """Count the parameters of every timm architecture on the meta device and write them to ``path``."""
    import timm
    import torch

    sizes: dict[str, int] = {}
    for name in sorted(timm.list_models()):
        try:
            with torch.device("meta"):
                model = timm.create_model(name)
        except Exception:  # initialisations that read values
            try:
                model = timm.create_model(name)
            except Exception:
                continue
        sizes[name] = sum(p.numel() for p in model.parameters())
    with open(path, "w") as file:
        json.dump(sizes, file, indent=0, sort_keys=True)
        file.write("\n")
    return sizes
