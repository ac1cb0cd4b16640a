"""``tensorrt-rtx``: an engine of TensorRT-RTX, built with or without a GPU, its kernels compiled where it runs."""

from __future__ import annotations

from typing import Any

from edp_fx.errors import LoweringError
from edp_fx.lowering.target import BuildOptions
from edp_fx.lowering.targets.tensorrt import TensorRT, require_gpu


class TensorRTRTX(TensorRT):
    """TensorRT-RTX, for the compute capabilities it is asked for."""

    name = "tensorrt-rtx"
    makes = "engine of TensorRT-RTX"
    package = "tensorrt_rtx"
    needs_gpu = False

    def is_default(self) -> bool:
        """Anywhere."""
        return True

    def check_own(self, options: BuildOptions) -> None:
        """Refuse what is TensorRT's alone, and compute capabilities that RTX has no kernels for."""
        if options.timing_cache is not None:
            raise LoweringError("a timing cache is for --target tensorrt: TensorRT-RTX times nothing while it builds")
        for name in options.compute_capabilities:
            self._capability(name)

    def configure(self, config: Any, options: BuildOptions) -> None:
        """Set the compute capabilities to build for."""
        if not options.compute_capabilities:
            return
        config.num_compute_capabilities = len(options.compute_capabilities)
        for index, name in enumerate(options.compute_capabilities):
            if not config.set_compute_capability(self._capability(name), index):
                raise LoweringError(f"TensorRT-RTX refused compute capability {name!r} together with the others")

    def capture_config(self, engine: Any) -> Any:
        """RTX goes on compiling kernels for a shape after its first run, so it captures the whole engine itself."""
        trt = self.module()
        runtime_config = engine.create_runtime_config()
        runtime_config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return runtime_config

    def why_refused(self) -> str:
        """It may have no kernels for this GPU at all."""
        import torch

        trt = self.module()
        major, minor = torch.cuda.get_device_capability()
        if f"SM{major}{minor}" not in trt.ComputeCapability.__members__:
            name = torch.cuda.get_device_name()
            return f"TensorRT-RTX does not run on {name} (compute capability {major}.{minor}); use --target tensorrt"
        return super().why_refused()

    def _capability(self, name: str) -> Any:
        trt = self.module()
        known = [str(one) for one in trt.ComputeCapability.__members__ if one != "NONE"]
        wanted = name.upper().replace(".", "")
        wanted = wanted if wanted == "CURRENT" or wanted.startswith("SM") else f"SM{wanted}"
        if wanted not in known:
            raise LoweringError(f"TensorRT-RTX does not build for {name!r}: one of {', '.join(sorted(known))}")
        if wanted == "CURRENT":
            require_gpu("compute capability 'current' is that of the GPU in this machine")
        return trt.ComputeCapability.__members__[wanted]
