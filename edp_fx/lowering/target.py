"""What a lowering target is: what makes a runtime's file of an ONNX file, and loads it again."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from edp_fx.errors import LoweringError
from edp_fx.lowering.plan import Plan

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from edp_fx.lowering.profile import Range

Progress = Callable[[str, int, int], None]
"""Called with what is being done, steps done and steps in all (0 where unknown)."""


class BuildError(LoweringError):
    """The builder took the network whole and then made no file of it."""


@dataclass(frozen=True)
class BuildOptions:
    """What may be asked of a build.

    Attributes:
        shapes: for each input with a varying size its least, usual and greatest shape.
        compute_capabilities: such as ``("sm86", "sm120")``; none means every one the target knows.
        workspace: most scratch memory while building, in bytes.
        timing_cache: a file read if it is there and rewritten.
    """

    shapes: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    compute_capabilities: tuple[str, ...] = ()
    workspace: int | None = None
    timing_cache: Path | None = None


@dataclass(frozen=True)
class Build:
    """A runtime's file: its bytes, the builder's name and account of it, and the timing cache to keep, if asked."""

    data: bytes
    builder: str | None = None
    plan: Plan | None = None
    compute_capabilities: tuple[str, ...] = ()
    timing_cache: bytes | None = None


class Engine(Protocol):
    """A loaded file, called like a module: tensors in, a tensor or a tuple of them out."""

    device: torch.device

    @property
    def batch(self) -> Range | None:
        """The batch sizes it takes, None for any."""

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Inputs of the file's shapes with the least batch."""

    def __call__(self, *inputs: Tensor) -> Any:
        """The outputs; raises LoweringError where the inputs' shapes do not fit."""


class Target:
    """One runtime. A subclass is registered by :func:`edp_fx.lowering.targets.register_target`; nothing else asks which
    target a file is for.

    Attributes:
        name: what ``--target`` and the sidecar call it.
        makes: what its file is, in words.
        package: the module that it needs installed, None for nothing more than edp_fx itself.
        is_engine: its file is not the ONNX file itself.
        lacks: precisions that it does not have -> why, and what to do.
    """

    name: ClassVar[str]
    makes: ClassVar[str]
    package: ClassVar[str | None] = None
    is_engine: ClassVar[bool] = True
    lacks: ClassVar[dict[str, str]] = {}

    @property
    def installed(self) -> bool:
        """Whether its package is."""
        return self.package is None or importlib.util.find_spec(self.package) is not None

    def is_default(self) -> bool:
        """Whether it may be taken on this machine where nobody names a target."""
        return False

    def check(self, options: BuildOptions) -> None:
        """Refuse, before any work, options that it does not have, and a machine it cannot be used on.

        Raises LoweringError.
        """
        if options.compute_capabilities or options.timing_cache or options.workspace:
            raise LoweringError(
                f"compute capabilities, timing cache and workspace are for TensorRT, not for {self.name}"
            )

    def build(self, data: bytes, options: BuildOptions, progress: Progress | None = None) -> Build:
        """The runtime's file from the ONNX file ``data``; writes nothing.

        Raises LoweringError with the runtime's own reason, BuildError where the network is sound and the builder fails.
        """
        raise NotImplementedError

    def load(self, data: bytes, *, where: str, cuda_graph: bool = False) -> Engine:
        """What :meth:`build` made, ready to run. ``where`` names the file in messages. Raises LoweringError."""
        raise NotImplementedError
