"""A device: the few numbers that turn the sizes of launches into milliseconds, and the files that hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from edp_fx.cost.work import DEPTHWISE, MATRICES
from edp_fx.errors import BudgetError, EdpError
from edp_fx.files import write
from edp_fx.settings import Settings, bounded, near

DEFAULT = "cpu-onnxruntime"
HOME = Path(__file__).parent / "devices"
BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.0}
RUNTIMES: Mapping[str, tuple[str, bool]] = {
    "graph": ("nothing", True),
    "compile": ("pointwise", True),
    "tensorrt": ("all", True),
    "tensorrt-rtx": ("all", True),
    "onnxruntime": ("products", False),
    "torch": ("nothing", True),
}
"""What runs a network -> what it fuses (:data:`edp_fx.cost.launches.FUSIONS`), and whether attention is one launch."""


@dataclass(frozen=True)
class Device(Settings):
    """Hardware under one runtime, for one precision.

    A launch takes ``launch`` microseconds, and then as long as the slower of its traffic and its arithmetic: bytes over
    ``memory`` of the ``bandwidth``, multiply-accumulates in whole tiles over a share of the ``peak``.

    Args:
        name: what a budget calls it.
        hardware: its name as the system gives it, or a part of that: by it a machine knows whether it is at hand.
        runtime: one of :data:`RUNTIMES`.
        precision: of weights and activations.
        peak: multiply-accumulates a second of its matrix units, dense, in that precision, in 10^12.
        bandwidth: bytes a second of its memory, in 10^9.
        convolution: share of the peak that convolutions in whole tiles reach.
        matrices: share of the peak that products of matrices in whole tiles reach.
        depthwise: share of the peak that depthwise convolutions reach.
        memory: share of the bandwidth that launches reach; above 1 where caches hold most of what is between layers.
        launch: microseconds of each launch, whatever it does.
        uneven: share of its speed that a convolution reaches where the rows of channels that it reads and those that it
            writes both end within a sector of memory (32 bytes).
        softmax: scores of attention in one launch that are weighed a second, in 10^12; 0 where that does not count.
        tile_outputs, tile_inputs: products are computed in blocks of so many outputs and input channels.
        threads: of a processor.
        fitted: which of these were fitted to measurements; the others are published, or were taken over from a device
            that is built alike.
        source: where the numbers come from.
    """

    error: ClassVar[type[EdpError]] = BudgetError
    what: ClassVar[str] = "device"

    name: str
    hardware: str
    runtime: str = bounded("tensorrt", choices=RUNTIMES)
    precision: str = bounded("fp16", choices=BYTES)
    peak: float = bounded(100.0, above=0)
    bandwidth: float = bounded(1000.0, above=0)
    convolution: float = bounded(0.3, above=0)
    matrices: float = bounded(0.6, above=0)
    depthwise: float = bounded(0.0125, above=0)
    memory: float = bounded(0.5, above=0)
    launch: float = bounded(4.0, least=0)
    uneven: float = bounded(1.0, above=0)
    softmax: float = bounded(0.0, least=0)
    tile_outputs: int = bounded(64, least=1)
    tile_inputs: int = bounded(32, least=1)
    threads: int = bounded(1, least=1)
    fitted: tuple[str, ...] = ()
    source: str = ""

    @property
    def fuses(self) -> str:
        """What its runtime takes into one launch, see :data:`edp_fx.cost.launches.FUSIONS`."""
        fuses = RUNTIMES[self.runtime][0]
        return {"nothing": "layers", "pointwise": "all"}.get(fuses, fuses) if self.hardware == "cpu" else fuses

    @property
    def attention(self) -> bool:
        """Whether attention is one launch."""
        return RUNTIMES[self.runtime][1]

    @property
    def bytes(self) -> float:
        """Of a number."""
        return BYTES[self.precision]

    def reached(self, family: str) -> float:
        """Share of the peak that launches of a family reach, see :class:`edp_fx.cost.work.Work`."""
        return self.depthwise if family == DEPTHWISE else self.matrices if family == MATRICES else self.convolution

    def under(self, runtime: str) -> Device:
        """The same hardware under another runtime."""
        return self if runtime == self.runtime else self.changed(runtime=runtime)

    @property
    def at_hand(self) -> bool:
        """Whether this machine has it, and what runs it."""
        if self.hardware == "cpu":
            return True
        return torch.cuda.is_available() and self.hardware.lower() in torch.cuda.get_device_name().lower()

    def write(self, path: Path) -> None:
        """Write it down as a JSON file that :func:`load_device` reads. Raises EdpError."""
        write({path: (json.dumps(self.plain(), indent=1) + "\n").encode()})


def device_names() -> list[str]:
    """The devices that come with the library."""
    return sorted(path.stem for path in HOME.glob("*.json"))


def load_device(device: Device | str | Path) -> Device:
    """A device by name, or from a file of its own.

    Raises:
        BudgetError: there is none of that name, or the file is damaged; says which.
    """
    if isinstance(device, Device):
        return device
    names, path = device_names(), Path(device)
    if str(device) in names:
        path = HOME / f"{device}.json"
    elif path.suffix != ".json":
        hint = near(device, names) or f"; take one of {', '.join(names)}, or a file of edp-fx device measure"
        raise BudgetError(f"device {device}: unknown{hint}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BudgetError(f"device {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BudgetError(f"device {path}: damaged; measure it anew with edp-fx device measure") from error
    if not isinstance(values, Mapping) or not {"name", "hardware"} <= set(values):
        raise BudgetError(f"device {path}: no device; measure one with edp-fx device measure")
    return Device.read(values)
