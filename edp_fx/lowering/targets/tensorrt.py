"""``tensorrt``: an engine of TensorRT 11, built on the machine whose GPU runs it."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

from edp_fx.errors import LoweringError
from edp_fx.lowering.target import Build, BuildOptions, Engine, Progress, Target


class TensorRT(Target):
    """TensorRT, and what TensorRT-RTX has in common with it.

    Engines are strongly typed: the precision is the file's own. Source: the Python API references of both (Builder,
    OnnxParser, IBuilderConfig, IOptimizationProfile, ICudaEngine).
    """

    name = "tensorrt"
    makes = "engine of TensorRT 11, for the GPU it is built on"
    package: ClassVar[str | None] = "tensorrt"
    needs_gpu: ClassVar[bool] = True

    def is_default(self) -> bool:
        """With an NVIDIA GPU."""
        import torch

        return torch.cuda.is_available()

    def module(self) -> Any:
        """The Python module. Raises LoweringError naming the extra to install."""
        if self.needs_gpu:
            require_gpu("TensorRT engines are built on the machine that runs them")
        assert self.package is not None
        try:
            return importlib.import_module(self.package)
        except ImportError as error:
            raise LoweringError(
                f"--target {self.name}: not installed ({error}); pip install 'edp_fx[{self.name}]', or take --target "
                "onnxruntime"
            ) from error

    @property
    def logger(self) -> Any:
        """The process' one logger of the module, which must outlive everything made with it."""
        from edp_fx.lowering.tensorrt_build import logger_of

        return logger_of(self.module())

    def check(self, options: BuildOptions) -> None:
        """The module is there, and takes the options."""
        self.module()
        if options.workspace is not None and not 0 < options.workspace < 2**63:
            raise LoweringError(f"a workspace of {options.workspace} bytes: it needs at least one and fewer than 2^63")
        self.check_own(options)

    def check_own(self, options: BuildOptions) -> None:
        """Refuse what is TensorRT-RTX's alone."""
        if options.compute_capabilities:
            raise LoweringError(
                "compute capabilities are for --target tensorrt-rtx: TensorRT builds for the GPU it runs on"
            )

    def configure(self, config: Any, options: BuildOptions) -> None:
        """Set in the builder's config what only this target has: the timing cache."""
        path = options.timing_cache
        if path is None:
            return
        try:
            stored = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise LoweringError(f"cannot read the timing cache {path}: {error.strerror}") from error
        cache = config.create_timing_cache(stored)
        if cache is None or not config.set_timing_cache(cache, False):
            raise LoweringError(f"the timing cache {path} is damaged or of another GPU or version: remove it")

    def build(self, data: bytes, options: BuildOptions, progress: Progress | None = None) -> Build:
        """An engine, with the parser's or builder's own reason where there is none."""
        from edp_fx.lowering.tensorrt_build import build_engine

        self.check(options)
        return build_engine(self, data, options, progress)

    def load(self, data: bytes, *, where: str, cuda_graph: bool = False) -> Engine:
        """On the GPU of this machine, which has to be that of the build."""
        from edp_fx.lowering.tensorrt_engine import TensorRTEngine

        require_gpu(f"{where} is a {self.name} engine and runs on one")
        return TensorRTEngine(self, data, cuda_graph=cuda_graph)

    def capture_config(self, engine: Any) -> Any:
        """The run-time configuration by which the runtime captures launches itself; None where the caller does."""
        return None

    def why_refused(self) -> str:
        """Why the runtime may have refused an engine, and what to do."""
        return "it is of another GPU or version; lower the model again"


def require_gpu(what: str) -> None:
    """Raise LoweringError without an NVIDIA GPU: TensorRT's libraries end the process at their first use
    there.
    """
    import torch

    if not torch.cuda.is_available():
        raise LoweringError(
            f"no NVIDIA GPU: {what}; to build here use --target tensorrt-rtx, to run here an .onnx file"
        )
