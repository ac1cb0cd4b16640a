"""A model of one's own: ``module.path:callable``."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Mapping
from typing import Any

from torch import nn

from edp_fx.errors import ModelError, typed_line
from edp_fx.inputs import normalize
from edp_fx.models.loaded import CROPPING, MEAN, STD, LoadedModel, built, cropping_of, fit, images, near

OFFERED = ("num_classes", "in_chans", "img_size", "pretrained")
RETURNED = ("model", "example_inputs", "mean", "std", *CROPPING, "classes", "loss", "metric")


def from_callable(
    spec: str, num_classes: int | None, in_chans: int, size: tuple[int, int] | None, pretrained: bool
) -> LoadedModel:
    """Call ``module.path:callable``; the module may lie in the current directory.

    The callable is given those of ``num_classes``, ``in_chans``, ``img_size`` (height, width) and ``pretrained`` that
    it has arguments for. It returns a model, ``(model, example_inputs)``, or a dictionary or object that has ``model``
    and may have ``example_inputs``, ``mean`` and ``std`` (a number a channel), ``interpolation``, ``crop_pct`` and
    ``crop_mode`` (see :class:`~edp_fx.models.loaded.LoadedModel`), ``classes`` (names in the order of the outputs),
    ``loss`` and ``metric`` (callables of outputs and targets).

    Raises:
        ModelError: it cannot be imported or called, takes no ``pretrained`` where that is asked for, or returns
            something else.
    """
    function = imported(spec)
    if not callable(function):
        raise ModelError(f"{spec!r} is {type(function).__name__}, not a function that makes a model")
    if isinstance(function, nn.Module):
        raise ModelError(f"{spec!r} is a model already made; give a function that returns it")
    offered = dict(zip(OFFERED, (num_classes, in_chans, size, pretrained)))
    takes = _arguments(function)
    if pretrained and "pretrained" not in takes:
        raise ModelError(
            f"--pretrained: {spec} takes no argument 'pretrained'; let it load its own weights, or give --weights FILE"
        )
    made = built(spec, lambda: function(**{k: v for k, v in offered.items() if k in takes and v is not None}))
    facts = _facts(spec, made)
    inputs = facts.get("example_inputs")
    inputs = normalize(inputs if inputs is not None else images(in_chans, size or (224, 224)))
    shape = tuple(inputs[0].shape[1:])
    channels = shape[0] if len(shape) == 3 else 0
    loaded = LoadedModel(
        facts["model"],
        inputs,
        shape,
        fit(MEAN, channels),
        fit(STD, channels),
        spec,
        weights=f"as {spec} gives them",
        classes=tuple(str(one) for one in facts.get("classes") or ()),
        loss=facts.get("loss"),
        metric=facts.get("metric"),
        cropping=cropping_of(repr(spec), facts),
    )
    loaded.normalise_by(_numbers(spec, facts, "mean"), _numbers(spec, facts, "std"))
    return loaded


def imported(spec: str) -> Any:
    """What ``module.path:name`` names; the module may lie in the current directory. Raises :class:`ModelError`."""
    path, _, name = spec.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a user's own file beside him
    try:
        found: Any = importlib.import_module(path)
        for atom in name.split("."):
            found = getattr(found, atom)
    except Exception as error:  # a module of the user's may fail in any way
        raise ModelError(f"cannot import {spec!r}: {typed_line(error)}") from error
    return found


def _arguments(function: Any) -> set[str]:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # written in C
        return set()
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        return set(parameters) & set(OFFERED)
    return set(parameters)


def _facts(spec: str, made: Any) -> dict[str, Any]:
    """What the callable gave, by the names of :data:`RETURNED`."""
    if isinstance(made, nn.Module):
        return {"model": made}
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
        return {"model": made[0], "example_inputs": made[1]}
    if isinstance(made, Mapping):
        unknown = [str(key) for key in made if key not in RETURNED]
        if unknown:
            hint = near(unknown[0], RETURNED)
            raise ModelError(f"{spec!r} returned {unknown[0]!r}, not one of {', '.join(RETURNED)}{hint}")
        facts = dict(made)
    else:
        facts = {key: getattr(made, key) for key in RETURNED if hasattr(made, key)}
    if not isinstance(facts.get("model"), nn.Module):
        raise ModelError(
            f"{spec!r} returned {type(made).__name__}, not a model, (model, example_inputs) or something with a model"
        )
    return facts


def _numbers(spec: str, facts: Mapping[str, Any], name: str) -> tuple[float, ...] | None:
    given = facts.get(name)
    if given is None:
        return None
    try:
        return tuple(float(one) for one in (given if hasattr(given, "__iter__") else (given,)))
    except (TypeError, ValueError) as error:
        raise ModelError(f"{spec!r} returned {name}={given!r}: give a number a channel") from error
