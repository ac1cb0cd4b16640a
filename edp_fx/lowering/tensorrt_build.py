"""ONNX -> engine, by the builder that TensorRT 11 and TensorRT-RTX share."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any, ClassVar, Protocol

import torch

from edp_fx.errors import LoweringError
from edp_fx.lowering.plan import PlanLayer, inspected_layers, parse_plan
from edp_fx.lowering.target import Build, BuildError, BuildOptions, Progress


class TensorRTLike(Protocol):
    """What TensorRT and TensorRT-RTX differ in."""

    name: ClassVar[str]
    package: ClassVar[str | None]

    @property
    def logger(self) -> Any:
        """The module's one logger, which keeps its messages."""

    def module(self) -> Any:
        """The Python module."""

    def configure(self, config: Any, options: BuildOptions) -> None:
        """Set in the builder's config what only this one has."""

    def capture_config(self, engine: Any) -> Any:
        """The run-time configuration by which the runtime captures launches itself; None where the caller does."""

    def why_refused(self) -> str:
        """Why the runtime may have refused an engine, and what to do."""


def build_engine(target: TensorRTLike, data: bytes, options: BuildOptions, progress: Progress | None = None) -> Build:
    """Build an engine of ``target`` from the ONNX file ``data``.

    Raises LoweringError with the parser's or builder's own reason: broken file, unknown operator, shapes or
    types that do not fit, an input that varies without a profile, and so on; BuildError where the network is
    sound and the builder still fails. Nothing is written.
    """
    trt, logger = target.module(), target.logger
    logger.messages.clear()
    builder = trt.Builder(logger)
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(data):
        raise LoweringError(f"{target.name} cannot read the ONNX file: {_parser_reason(parser)}")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    _set_profile(builder, network, config, options)
    target.configure(config, options)
    if progress is not None:
        config.progress_monitor = _monitor(trt, progress)
    host = builder.build_serialized_network(network, config)
    messages = [text for _, text in logger.messages]
    if host is None:
        raise BuildError(f"{target.name} could not build the engine: {_builder_reason(trt, logger)}")
    kept = None
    if options.timing_cache is not None:
        kept = bytes(memoryview(config.get_timing_cache().serialize()))
    serialized, plan = bytes(memoryview(host)), parse_plan(messages)
    if not plan.layers and torch.cuda.is_available():
        plan = replace(plan, layers=_inspect(trt, logger, serialized))
    return Build(serialized, f"{target.package} {trt.__version__}", plan, options.compute_capabilities, kept)


@functools.cache
def logger_of(trt: Any) -> Any:
    """The process' one logger of the module ``trt``, which keeps its messages."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[tuple[Any, str]] = []

        def log(self, severity: Any, msg: str) -> None:
            self.messages.append((severity, msg))

    return Logger()


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
