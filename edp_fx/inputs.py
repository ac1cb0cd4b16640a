"""Example inputs as every part of the library takes them, and weights that make a comparison mean
something."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn

from edp_fx.errors import ModelError, one_line

COMPUTE_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
"""The layers that carry a network's multiply-accumulates: convolutions of every kind and linear layers."""


def normalize(example_inputs: Any, model: nn.Module | None = None) -> tuple[Tensor, ...]:
    """The example inputs as a tuple of tensors, on the device of ``model`` where it is given and has one.

    Args:
        example_inputs: one tensor, or a tuple or list of them, in the order ``forward`` takes them.
        model: on a GPU, say. One on the meta device takes inputs from anywhere.

    Raises:
        ModelError: for anything else.
    """
    if model is not None and not isinstance(model, nn.Module):
        raise ModelError(f"a model must be a torch.nn.Module, found {type(model).__name__}")
    inputs = tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)
    for one in inputs:
        if not isinstance(one, Tensor):
            raise ModelError(
                f"example inputs must be a tensor or a tuple of tensors, found {type(one).__name__}; "
                "bind other arguments of forward by default values or in a small wrapper module"
            )
    if not inputs:
        raise ModelError("example inputs are empty; give at least one tensor")
    home = device_of(model) if model is not None else None
    if home is None or home.type == "meta":
        return inputs
    return tuple(one if one.is_meta else one.to(home) for one in inputs)


def require_graph(gm: Any, who: str) -> None:
    """Raise :class:`ModelError` where ``gm`` is not a traced network, as ``who`` needs."""
    if not isinstance(gm, fx.GraphModule):
        raise ModelError(f"{who} takes a traced network, not {type(gm).__name__}: edp_fx.trace(model, example_inputs)")


def device_of(model: nn.Module) -> torch.device | None:
    """Where the model's first tensor is; None where it has none."""
    return next((tensor.device for tensor in chain(model.parameters(), model.buffers())), None)


def copied(model: Any) -> Any:
    """A deep copy of a network.

    Raises:
        ModelError: it holds something that cannot be copied, as ``torch.nn.utils.weight_norm`` does after a run.
    """
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise ModelError(
            f"{type(model).__name__} cannot be copied: {one_line(error)} Take torch.nn.utils.parametrizations in the "
            "place of torch.nn.utils.weight_norm, or remove it (torch.nn.utils.remove_weight_norm)"
        ) from error


_CONTAINERS = frozenset((dict, list, set))


def snapshot(module: nn.Module) -> Callable[[], None]:
    """Remembers a module's attributes, one container deep; models cache things while they run."""
    state = module.__dict__
    saved = state.copy()
    contents: list[tuple[Any, Any]] = [(v, v.copy() if v else ()) for v in saved.values() if type(v) in _CONTAINERS]

    def restore() -> None:
        for container, before in contents:
            if not before:
                if container:
                    container.clear()
            elif isinstance(container, list):
                container[:] = before
            elif not _same(container, before):
                container.clear()
                container.update(before)
        if "training" in saved:
            state["training"] = saved["training"]
        if state.keys() == saved.keys() and all(map(operator.is_, state.values(), saved.values())):
            return  # most modules keep nothing while they run
        for key, value in saved.items():
            if state.get(key) is not value:
                state[key] = value
        for key in state.keys() - saved.keys():
            del state[key]

    return restore


def _same(one: Any, other: Any) -> bool:
    """Whether two dictionaries or sets hold the very same objects."""
    if isinstance(one, set):
        return one == other
    return len(one) == len(other) and all(value is other.get(key) for key, value in one.items())


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Puts every submodule into eval mode and gives each back its mode, and what it had assigned to itself."""
    modules = list(model.modules())
    restores = [snapshot(module) for module in modules]
    try:
        for module in modules:
            module.__dict__["training"] = False
        yield
    finally:
        for restore in restores:
            restore()


def _is_table(parameter: Tensor) -> bool:
    """Embeddings, tokens, bias tables; a large matrix outside a layer is a layer's weight all the same."""
    return parameter.ndim > 1 and not (parameter.ndim == 2 and min(parameter.shape) >= 32)


@torch.no_grad()
def randomize_(model: nn.Module, seed: int = 0) -> None:
    """Replace whatever an initialisation leaves constant, so that equality of two networks means something.

    Norm statistics, gammas and betas, layer scales, biases and zero-initialised weights become random,
    position embeddings and tables grow to a visible size, and the weights of layers that start at less than half of
    the scale that keeps a variance (1/√fan-in) grow to it: through a deep network of smaller ones hardly anything of
    the input comes out. Other weights stay. The same seed gives the same values on every device.
    """
    for tensor, value in random_values(model, seed):
        tensor.copy_(value)


@torch.no_grad()
def random_values(model: nn.Module, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Each parameter and statistic that :func:`randomize_` replaces, with what it puts there."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor, std: float) -> Tensor:
        return torch.randn(like.shape, generator=generator).mul_(std).to(like)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator).mul_(high - low).add_(low).to(like)

    seen: set[int] = set()
    for module in model.modules():
        heavy = isinstance(module, COMPUTE_LAYERS)
        for parameter in module.parameters(recurse=False):
            if id(parameter) in seen or not parameter.is_floating_point() or not parameter.numel():
                continue
            seen.add(id(parameter))
            low, high = (float(v) for v in parameter.aminmax())
            if low == high:
                if low != 0:
                    yield parameter, uniform(parameter, 0.5, 1.5)
                elif parameter.ndim > 1:
                    yield parameter, normal(parameter, parameter[0].numel() ** -0.5)
                else:
                    yield parameter, normal(parameter, 0.1)
            elif _is_table(parameter) and not heavy and float(parameter.std()) < 0.1:
                yield parameter, normal(parameter, 0.2)
            elif heavy and parameter.ndim > 1 and _spread(parameter) < 0.5 * parameter[0].numel() ** -0.5:
                yield parameter, normal(parameter, parameter[0].numel() ** -0.5)
        mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        if isinstance(mean, Tensor) and isinstance(var, Tensor):
            yield mean, normal(mean, 0.2)
            yield var, uniform(var, 0.5, 1.5)


def _spread(weight: Tensor) -> float:
    """Its standard deviation, in a fifth of the time that torch.std takes."""
    mean, square = float(weight.mean()), float(torch.linalg.vector_norm(weight)) ** 2
    return (max(0.0, square - weight.numel() * mean**2) / max(1, weight.numel() - 1)) ** 0.5
