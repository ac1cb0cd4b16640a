"""``LatencyTable``: what was measured is looked up, what was not is measured; on disk from run to run."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, fx

from edp_fx.errors import EdpError, LoweringError
from edp_fx.extras import installed_version
from edp_fx.files import cache_directory, write
from edp_fx.inputs import normalize
from edp_fx.latency.runtimes import Runtime, cpu_name, make_runtime
from edp_fx.latency.signature import Signature

FORMAT = 1


class LatencyTable:
    """Median milliseconds of layers and whole networks on one runtime.

    Measurements are kept in one JSON file per set of versions (torch, onnxruntime) and processor, in
    ``$XDG_CACHE_HOME/edp_fx/latency`` or ``~/.cache/edp_fx/latency``; a damaged file is said in one warning and
    measured anew. In a distributed run rank 0 measures and the others take its numbers, so that all decide alike.

    Args:
        runtime: ``onnxruntime`` (CPU), ``torch`` (either), ``tensorrt`` (GPU), or a :class:`Runtime` of your own.
        batch: images a call.
        threads: of the CPU.
        device: ``cpu`` or ``cuda`` for torch; the GPU where there is one if None.
        directory: where the file is kept.

    Raises:
        LoweringError: the runtime is unknown or this machine lacks what it runs on.
    """

    def __init__(
        self,
        runtime: str | Runtime = "onnxruntime",
        *,
        batch: int = 1,
        threads: int = 1,
        device: str | None = None,
        directory: str | Path | None = None,
    ) -> None:
        if batch < 1 or threads < 1:
            raise LoweringError(f"latency of batch {batch} with {threads} threads: both are at least 1")
        self.runtime = (
            runtime if isinstance(runtime, Runtime) else make_runtime(runtime, threads=threads, device=device)
        )
        self.batch = batch
        self.environment = {
            "torch": torch.__version__,
            "onnxruntime": installed_version("onnxruntime"),
            "cpu": cpu_name(),
        }
        digest = hashlib.sha256(json.dumps(self.environment, sort_keys=True).encode()).hexdigest()[:16]
        self.file = (Path(directory) if directory is not None else default_directory()) / f"{digest}.json"
        self._known = self._read()

    def layer(self, signature: Signature) -> float:
        """Milliseconds of one call of the layer."""
        return self._look_up(signature.key, lambda: self.runtime.time(signature.layer(), (signature.example(),)))

    def network(self, gm: fx.GraphModule, example_inputs: Any) -> float:
        """Milliseconds of one call of a whole network in eval mode at ``batch`` images.

        Args:
            gm: left as it is.
            example_inputs: of any batch size; the first input's length is the batch.

        Raises:
            LoweringError: the runtime cannot take the network.
        """
        inputs = self._batched(normalize(example_inputs))
        shapes = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in gm.state_dict().items()]
        what = f"{gm.code}{shapes}{[(tuple(x.shape), str(x.dtype)) for x in inputs]}"
        key = f"network {hashlib.sha256(what.encode()).hexdigest()[:32]}"
        return self._look_up(key, lambda: self.runtime.time(gm, inputs))

    def batch_share(self, example_inputs: tuple[Tensor, ...]) -> float:
        """``batch`` over the length of the example inputs."""
        return self.batch / max(1, example_inputs[0].shape[0])

    def _batched(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The inputs with ``batch`` rows, repeated where there are fewer."""
        rows = inputs[0].shape[0] if inputs[0].dim() else 0
        index = torch.arange(self.batch) % max(1, rows)
        return tuple(x[index.to(x.device)] if x.dim() and x.shape[0] == rows else x for x in inputs)

    def _look_up(self, what: str, measure: Any) -> float:
        key = f"{self.runtime.name} | {self.runtime.device} | {self.runtime.threads} threads | {what}"
        if distributed.is_available() and distributed.is_initialized():
            told: list[Any] = [None]
            if distributed.get_rank() == 0:
                try:
                    told = [self._own(key, measure)]
                except LoweringError as error:  # the others must not wait for a number
                    told = [str(error)]
            distributed.broadcast_object_list(told, src=0)
            if isinstance(told[0], str):
                raise LoweringError(told[0])
            return float(told[0])
        return self._own(key, measure)

    def _own(self, key: str, measure: Any) -> float:
        if key not in self._known:
            self._known[key] = float(measure())
            self._write()
        return self._known[key]

    # -- on disk -------------------------------------------------------------------------------------------

    def _read(self) -> dict[str, float]:
        try:
            content = json.loads(self.file.read_text())
            if content["format"] != FORMAT or content["environment"] != self.environment:
                raise ValueError("of another format or machine")
            known = {str(key): float(value) for key, value in content["milliseconds"].items()}
            if not all(math.isfinite(value) and value > 0 for value in known.values()):
                raise ValueError("not all are milliseconds")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            why = error.strerror if isinstance(error, OSError) else "damaged"
            warnings.warn(f"latency table {self.file}: {why}; measuring anew", stacklevel=3)
            return {}
        return known

    def _write(self) -> None:
        content = {"format": FORMAT, "environment": self.environment, "milliseconds": self._known}
        with suppress(OSError, EdpError):  # a cache that cannot be kept costs time, nothing else
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write({self.file: json.dumps(content, indent=0, sort_keys=True).encode()})


def default_directory() -> Path:
    """Where tables are kept: ``$XDG_CACHE_HOME/edp_fx/latency``, or below ``~/.cache``."""
    return cache_directory() / "latency"
