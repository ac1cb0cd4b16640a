"""What a network costs as it stands: counted on the meta device, and timed."""

from __future__ import annotations

import statistics
import time
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from edp_fx.channels.weights import take_weights_away, without_data
from edp_fx.errors import ModelError, typed_line
from edp_fx.inputs import eval_mode, normalize
from edp_fx.leaves import tensors_of


@dataclass(frozen=True)
class Measurement:
    """Of one network: MACs and peak activation bytes of one sample, parameters, latency of the given batch in ms."""

    macs: float
    params: int
    activation_bytes: int
    latency_ms: float | None


def measure(model: nn.Module, example_inputs: Any, latency_runs: int = 0) -> Measurement:
    """Count and, with ``latency_runs`` > 0, time ``model`` in eval mode.

    MACs are half of what ``torch.utils.flop_counter`` counts (convolutions, matrix products, attention). Activation
    memory is the largest sum of tensors alive at once, weights left out. Latency is the median of ``latency_runs``
    runs of the given inputs by torch on the model's own device, after three warm-ups. A model that looks at the values
    of its input is run on the example inputs themselves.

    Raises:
        ModelError: the model does not run on the example inputs.
    """
    inputs = normalize(example_inputs, model)
    samples = max(1, inputs[0].shape[0]) if inputs[0].dim() else 1
    counter, memory = _counted_without_data(model, inputs) or _counted_with_data(model, inputs)
    latency = median_latency(model, inputs, latency_runs) if latency_runs else None
    return Measurement(
        macs=counter.get_total_flops() / 2 / samples,
        params=sum(parameter.numel() for parameter in model.parameters()),
        activation_bytes=memory.peak // samples,
        latency_ms=latency,
    )


def _counted(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[FlopCounterMode, _ActivationMemory]:
    counter, memory = FlopCounterMode(display=False), _ActivationMemory()
    with counter:
        model(*inputs)
    with memory:
        fx.Interpreter(model).run(*inputs) if isinstance(model, fx.GraphModule) else model(*inputs)
    return counter, memory


def _counted_without_data(
    model: nn.Module, inputs: tuple[Any, ...]
) -> tuple[FlopCounterMode, _ActivationMemory] | None:
    """None for a model whose forward looks at values."""
    try:
        with eval_mode(model), torch.no_grad(), torch.device("meta"):
            take_weights_away(model)
            return _counted(model, without_data(inputs))
    except Exception:
        return None


def _counted_with_data(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[FlopCounterMode, _ActivationMemory]:
    try:
        with eval_mode(model), torch.no_grad():
            return _counted(model, inputs)
    except Exception as error:
        raise ModelError(f"the model does not run on the example inputs: {typed_line(error)}") from error


def median_latency(model: nn.Module, inputs: tuple[Any, ...], runs: int) -> float:
    """Median milliseconds of one forward pass in eval mode."""
    was_training = model.training
    model.eval()
    on_gpu = any(isinstance(x, Tensor) and x.is_cuda for x in inputs)
    times = []
    with torch.no_grad():
        for k in range(runs + 3):
            start = time.perf_counter()
            model(*inputs)
            if on_gpu:
                torch.cuda.synchronize()
            if k >= 3:
                times.append(time.perf_counter() - start)
    model.train(was_training)
    return 1000 * statistics.median(times)


class _ActivationMemory(TorchDispatchMode):
    """Bytes of the tensors made inside and still alive; a view counts nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tensors_of(result):
            if not func._schema.is_mutable:
                storage = leaf.untyped_storage()
                key = storage._cdata
                if key not in self._known and not _is_view_of(leaf, args):
                    self._known.add(key)
                    self.alive += storage.nbytes()
                    self.peak = max(self.peak, self.alive)
                    weakref.finalize(storage, self._free, key, storage.nbytes())
        return result

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


def _is_view_of(tensor: Tensor, args: Any) -> bool:
    key = tensor.untyped_storage()._cdata
    return any(x.untyped_storage()._cdata == key for x in tensors_of(args))
