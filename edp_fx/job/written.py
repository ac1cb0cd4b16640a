"""A run as it is written down: a YAML file by hand, ``run.yaml`` or the ``run`` of a ``report.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from edp_fx.compressor.budget import METRICS, Budget
from edp_fx.compressor.method import Method
from edp_fx.errors import EdpError
from edp_fx.files import write
from edp_fx.job.plan import Images, Lowering, Network, Plan
from edp_fx.settings import Settings, near
from edp_fx.train.recipe import Recipe

RUN = "run.yaml"
SECTIONS: dict[str, type[Settings]] = {"model": Network, "data": Images, "recipe": Recipe, "lower": Lowering}


def read_plan(written: Path | None = None, given: Mapping[str, Any] | None = None, sets: Sequence[str] = ()) -> Plan:
    """A run from a file, options and ``NAME=VALUE``, the later before the earlier.

    Args:
        written: YAML, or the ``report.json`` of a run; some of a :class:`Plan`'s sections and fields, or all.
        given: the same, of options; None for what is not given. ``method`` may hold a ``preset`` by name, which
            replaces the file's whole method, and ``macs``, ``params`` or ``latency`` instead of a budget.
        sets: fields of :class:`Method` and :class:`Recipe` by name.

    Raises:
        EdpError: the file cannot be read, or a name or value is wrong; says which.
    """
    sections = {name: dict(values) for name, values in _read(written).items()} if written is not None else {}
    single = sections.pop("", {})
    for name, values in (given or {}).items():
        if not isinstance(values, Mapping):
            if values is not None:
                single[name] = values
            continue
        values = {key: value for key, value in values.items() if value is not None}
        if name == "method" and "preset" in values:
            sections.pop("method", None)
        sections[name] = {**sections.get(name, {}), **values}
    for text in sets:
        _set(text, sections, given or {})
    for name, option, other in (("model", "MODEL", None), ("data", "--data D", single.get("task"))):
        if not sections.get(name, {}).get("spec") and not other:
            raise EdpError(f"give {option}, or a --recipe that names one")
    if "epochs" not in sections.get("recipe", {}):
        raise EdpError("say how long to train: --epochs N (0 compresses without training)")
    made: dict[str, Any] = {name: kind.read(sections.get(name, {})) for name, kind in SECTIONS.items()}
    made["method"] = _method(sections.get("method", {}), made["model"], made["recipe"])
    return Plan(**made, **{name: Plan.checked(name, value) for name, value in single.items()})


def write_plan(plan: Plan, path: Path) -> None:
    """Write a run down, whole. Raises EdpError."""
    head = "# `edp-fx compress --recipe THIS_FILE --out DIR` repeats the run\n"
    write({path: (head + yaml.safe_dump(plan.plain(), sort_keys=False)).encode()})


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Sections by name; fields that belong to none under the empty name."""
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise EdpError(f"--recipe {path}: {error.strerror}") from error
    except (ValueError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise EdpError(f"--recipe {path}{where}: neither YAML nor the report of a run") from error
    if isinstance(values, Mapping) and "run" in values:
        values = values["run"]
    if not isinstance(values, Mapping) or not values:
        raise EdpError(f"--recipe {path}: give sections of {', '.join(Plan.names())}")
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        Plan.field(str(name))
        if isinstance(value, str) and name in ("model", "data", "method"):
            value = {"preset" if name == "method" else "spec": value}
        if name in SECTIONS or name == "method":
            if not isinstance(value, Mapping):
                raise EdpError(f"--recipe {path}: {name}: give names and values")
            sections[name] = {str(key): one for key, one in value.items()}
        else:
            sections.setdefault("", {})[name] = value
    return sections


def _set(text: str, sections: dict[str, dict[str, Any]], given: Mapping[str, Any]) -> None:
    name, equals, value = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals:
        raise EdpError(f"--set {text}: give NAME=VALUE")
    owner: type[Method] | type[Recipe]
    for section, owner in (("method", Method), ("recipe", Recipe)):
        if name in owner.names() and name != "budget":
            if (given.get(section) or {}).get(name) is not None:
                raise EdpError(f"--set {text}: --{name.replace('_', '-')} is given, too; give one of them")
            sections.setdefault(section, {})[name] = owner.checked(name, value.strip())
            return
    if name in ("budget", *METRICS):
        raise EdpError(f"--set {text}: give the budget as --macs, --params or --latency")
    known = [*Method.names(), *Recipe.names()]
    raise EdpError(f"--set {text}: unknown name{near(name, known) or '; take one of ' + ', '.join(known)}")


def _method(section: Mapping[str, Any], model: Network, recipe: Recipe) -> Method:
    values = dict(section)
    preset = values.pop("preset", None)
    if preset is None:
        preset = "one-shot" if recipe.epochs == 0 else "trained" if model.trained else "scratch"
    asked = {name: values.pop(name) for name in Budget.names() if name in values}
    if asked:
        values["budget"] = asked
    return Method.preset(str(preset), **{name: Method.checked(name, value) for name, value in values.items()})
