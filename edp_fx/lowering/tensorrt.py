"""ONNX -> engine, for TensorRT 11 and TensorRT-RTX alike: one builder, written to the API they share.

Source: the Python API references of both (Builder, OnnxParser, IBuilderConfig, IOptimizationProfile).
Engines are strongly typed: the precision is the file's own. RTX engines are built with or without a GPU;
TensorRT's only on the GPU's machine.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from edp_fx.errors import LoweringError
from edp_fx.lowering.plan import Plan, PlanLayer, inspected_layers, parse_plan

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}

Progress = Callable[[str, int, int], None]
"""Called with what is being done, steps done and steps in all (0 where unknown)."""


class BuildError(LoweringError):
    """The builder took the network whole and then made no engine of it."""


@dataclass(frozen=True)
class BuildOptions:
    """``shapes``: for each input with a varying size its least, usual and greatest shape.
    ``compute_capabilities``: RTX only, such as ``("sm86", "sm120")``; none means every one it knows.
    ``workspace`` in bytes. ``timing_cache``: TensorRT only, a file read if it is there and rewritten.
    """

    shapes: dict[str, tuple[tuple[int, ...], ...]]
    compute_capabilities: tuple[str, ...] = ()
    workspace: int | None = None
    timing_cache: Path | None = None


@dataclass(frozen=True)
class Build:
    """A serialized engine, the builder's account of it, and the timing cache to keep (TensorRT, if asked)."""

    data: bytes
    plan: Plan
    builder: str
    compute_capabilities: tuple[str, ...]
    timing_cache: bytes | None = None


def require_gpu(what: str) -> None:
    """Raise LoweringError without an NVIDIA GPU: TensorRT's libraries end the process at their first use
    there.
    """
    if not torch.cuda.is_available():
        raise LoweringError(
            f"no NVIDIA GPU: {what}; to build here use --target tensorrt-rtx, to run here an .onnx file"
        )


def load_module(target: str) -> Any:
    """The Python module of ``target``. Raises LoweringError naming the extra to install."""
    if target == "tensorrt":
        require_gpu("TensorRT engines are built on the machine that runs them")
    try:
        return importlib.import_module(MODULES[target])
    except ImportError as error:
        raise LoweringError(f"{target} is not installed: pip install 'edp-fx[{target}]' ({error})") from error


def check_options(target: str, options: BuildOptions) -> None:
    """Refuse, before any work, options that the target does not have. Raises LoweringError."""
    trt = load_module(target)
    if target != "tensorrt-rtx" and options.compute_capabilities:
        raise LoweringError(
            "compute capabilities are for --target tensorrt-rtx: TensorRT builds for the GPU it runs on"
        )
    if target != "tensorrt" and options.timing_cache is not None:
        raise LoweringError("a timing cache is for --target tensorrt: TensorRT-RTX times nothing while it builds")
    if options.workspace is not None and not 0 < options.workspace < 2**63:
        raise LoweringError(f"a workspace of {options.workspace} bytes: it needs at least one and fewer than 2^63")
    for name in options.compute_capabilities:
        _capability(trt, name)


def build_engine(data: bytes, target: str, options: BuildOptions, progress: Progress | None = None) -> Build:
    """Build an engine from the ONNX file ``data``.

    Raises LoweringError with the parser's or builder's own reason: broken file, unknown operator, shapes or
    types that do not fit, an input that varies without a profile, and so on; BuildError where the network is
    sound and the builder still fails. Nothing is written.
    """
    check_options(target, options)
    trt = load_module(target)
    logger = logger_of(target)
    logger.messages.clear()
    builder = trt.Builder(logger)
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(data):
        raise LoweringError(f"{target} cannot read the ONNX file: {_parser_reason(parser)}")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    _set_profile(builder, network, config, options)
    if target == "tensorrt-rtx":
        _set_capabilities(trt, config, options)
    cache = _start_timing_cache(config, options) if options.timing_cache is not None else None
    if progress is not None:
        config.progress_monitor = _monitor(trt, progress)
    host = builder.build_serialized_network(network, config)
    messages = [text for _, text in logger.messages]
    if host is None:
        raise BuildError(f"{target} could not build the engine: {_builder_reason(trt, logger)}")
    kept = None
    if cache is not None:
        kept = bytes(memoryview(config.get_timing_cache().serialize()))
    serialized, plan = bytes(memoryview(host)), parse_plan(messages)
    if not plan.layers and torch.cuda.is_available():
        plan = replace(plan, layers=_inspect(trt, logger, serialized))
    return Build(serialized, plan, f"{MODULES[target]} {trt.__version__}", options.compute_capabilities, kept)


def _set_profile(builder: Any, network: Any, config: Any, options: BuildOptions) -> None:
    varying = []
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        network_input = network.get_input(index)
        if all(size >= 0 for size in network_input.shape):
            continue
        if network_input.name not in options.shapes:
            raise LoweringError(
                f"input {network_input.name!r} {tuple(network_input.shape)} varies without a profile: "
                "give its least, usual and greatest shape"
            )
        low, usual, high = options.shapes[network_input.name]
        try:
            profile.set_shape(network_input.name, low, usual, high)
        except Exception as error:
            raise LoweringError(
                f"profile of input {network_input.name!r} refused: {low}, {usual}, {high}: {error}"
            ) from error
        varying.append(network_input.name)
    if varying:
        config.add_optimization_profile(profile)


def _capability(trt: Any, name: str) -> Any:
    known = [str(one) for one in trt.ComputeCapability.__members__ if one != "NONE"]
    wanted = name.upper().replace(".", "")
    wanted = wanted if wanted == "CURRENT" or wanted.startswith("SM") else f"SM{wanted}"
    if wanted not in known:
        raise LoweringError(f"TensorRT-RTX does not build for {name!r}: one of {', '.join(sorted(known))}")
    if wanted == "CURRENT":
        require_gpu("compute capability 'current' is that of the GPU in this machine")
    return trt.ComputeCapability.__members__[wanted]


def _set_capabilities(trt: Any, config: Any, options: BuildOptions) -> None:
    if not options.compute_capabilities:
        return
    config.num_compute_capabilities = len(options.compute_capabilities)
    for index, name in enumerate(options.compute_capabilities):
        if not config.set_compute_capability(_capability(trt, name), index):
            raise LoweringError(f"TensorRT-RTX refused compute capability {name!r} together with the others")


def _start_timing_cache(config: Any, options: BuildOptions) -> Any:
    path = options.timing_cache
    assert path is not None
    try:
        stored = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise LoweringError(f"cannot read the timing cache {path}: {error.strerror}") from error
    cache = config.create_timing_cache(stored)
    if cache is None or not config.set_timing_cache(cache, False):
        raise LoweringError(f"the timing cache {path} is damaged or of another GPU or version: remove it")
    return cache


@functools.cache
def logger_of(target: str) -> Any:
    """The process' one logger of a TensorRT module, which must outlive everything made with it."""
    trt = load_module(target)

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[tuple[Any, str]] = []

        def log(self, severity: Any, msg: str) -> None:
            self.messages.append((severity, msg))

    return Logger()


def _monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            progress(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress(phase_name, step + 1, self.steps.get(phase_name, 0))
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()


def _parser_reason(parser: Any) -> str:
    """The first error of the parser, with its node."""
    if not parser.num_errors:
        return "no reason given"
    failure = parser.get_error(0)
    name, operator = failure.node_name(), failure.node_operator()
    where = f"node {name or failure.node()} ({operator}): " if operator else ""
    return where + _plain(failure.desc())


def _builder_reason(trt: Any, logger: Any) -> str:
    serious = (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)
    lines = [_plain(text) for severity, text in logger.messages if severity in serious]
    # Without a driver every build logs one failed CUDA call; it is never the reason.
    lines = [line for line in lines if line and "Cuda Runtime" not in line]
    return lines[0] if lines else "no reason given"


def _plain(text: str) -> str:
    """One line without the note on the missing driver, which is appended to every message on a machine
    without one.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip() and "Cuda Runtime" not in line]
    return " ".join(lines)[:500]


def _inspect(trt: Any, logger: Any, data: bytes) -> tuple[PlanLayer, ...]:
    """The layers of an engine by the runtime's inspector, on a GPU: for a builder whose log has no table."""
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        return ()
    inspector = engine.create_engine_inspector()
    return inspected_layers(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
