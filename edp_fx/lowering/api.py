"""``edp_fx.lower``: a graph becomes a file that a runtime takes, checked on the way."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edp_fx.errors import LoweringError
from edp_fx.extras import need
from edp_fx.files import check_writable, write
from edp_fx.inputs import normalize
from edp_fx.lowering import sidecar
from edp_fx.lowering.alignment import AlignmentReport, alignment
from edp_fx.lowering.engine import load_engine
from edp_fx.lowering.onnx_export import Exported, export_onnx
from edp_fx.lowering.plan import Plan
from edp_fx.lowering.precision import cast_inputs, dtype_of, prepare
from edp_fx.lowering.profile import Profile, Range
from edp_fx.lowering.targets import BuildError, BuildOptions, Progress, Target, choose_target
from edp_fx.lowering.verify import Verification, verify


@dataclass(frozen=True)
class LowerResult:
    """What a lowering made. ``plan`` and ``builder`` are None where no engine was built; sizes are in
    bytes.
    """

    path: Path
    target: str
    precision: str
    bytes: int
    verification: Verification
    alignment: AlignmentReport
    plan: Plan | None = None
    builder: str | None = None
    onnx_path: Path | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def max_abs_diff(self) -> float:
        """The greatest absolute difference seen between the file and torch."""
        return self.verification.max_abs_diff

    @property
    def weights_memory(self) -> int | None:
        """Bytes of weights by the builder's own account."""
        return self.plan.weights_memory if self.plan else None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "path": str(self.path),
            "onnx_path": str(self.onnx_path) if self.onnx_path else None,
            "target": self.target,
            "precision": self.precision,
            "bytes": self.bytes,
            "builder": self.builder,
            "max_abs_diff": self.max_abs_diff,
            "max_rel_diff": self.verification.max_rel_diff,
            "verification": self.verification.to_json(),
            "alignment": self.alignment.to_json(),
            "plan": self.plan.to_json() if self.plan else None,
            "seconds": self.seconds,
        }


def lower(
    gm: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    path: str | Path,
    *,
    target: str | None = None,
    precision: str = "fp32",
    batch: int | str | tuple[int, int, int] = (1, 8, 32),
    image: int | str | tuple[int, int, int] | None = None,
    calibration_loader: Iterable[Any] | None = None,
    compute_capabilities: tuple[str, ...] = (),
    timing_cache: str | Path | None = None,
    workspace: int | None = None,
    onnx_path: str | Path | None = None,
    source: str | None = None,
    extra: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> LowerResult:
    """Lower ``gm`` (a graph or any module) to ``path`` and, beside it, a JSON sidecar.

    ``target``: the name of one of :data:`edp_fx.lowering.TARGETS` (None: TensorRT on a machine with a GPU and TensorRT,
    else TensorRT-RTX). ``precision``: ``fp32``,
    ``fp16``, ``bf16``, or ``int8``, which needs ``calibration_loader``. ``batch`` and ``image`` (height and
    width) are one size or (min, opt, max). ``compute_capabilities`` such as ``("sm86",)`` for RTX;
    ``timing_cache`` (a file) for TensorRT; ``workspace`` in bytes. ``onnx_path`` keeps the intermediate ONNX
    file too; ``source``, and what ``extra`` says (plain JSON: normalisation, class names …), are kept in the sidecar.

    The exported file is compared with torch under onnxruntime at three batch sizes before anything is built.
    Raises LoweringError, naming the node or option; every file is written whole or not at all.
    """
    path, onnx_path = Path(path), Path(onnx_path) if onnx_path is not None else None
    inputs = normalize(example_inputs)
    profile = Profile(Range.of(batch), Range.of(image) if image is not None else None)
    chosen = choose_target(target)
    check_precision(chosen, precision, calibration_loader)
    cache = Path(timing_cache) if timing_cache else None
    options = BuildOptions({}, tuple(compute_capabilities), workspace, cache)
    chosen.check(options)
    need("lower", "lowering")
    for one in (path, onnx_path, cache):
        if one is not None:
            check_writable(one, LoweringError)

    notify = progress or (lambda *_: None)
    clock = _Clock()
    reference = prepare(gm, "fp32")
    given = tuple(x.detach().cpu() for x in inputs)
    inputs = cast_inputs(given, torch.float32)
    report = alignment(reference, inputs, precision)
    notify("exporting to ONNX", 0, 0)
    prepared = prepare(gm, precision, given)
    exported = export_onnx(prepared, cast_inputs(inputs, dtype_of(precision)), profile)
    clock.lap("export")
    data = exported.data
    if calibration_loader is not None and precision == "int8":
        from edp_fx.lowering.quantize import quantize

        notify("calibrating int8", 0, 0)
        data = quantize(exported, calibration_loader)
        clock.lap("calibrate")
    notify("verifying against torch", 0, 0)
    checked = verify(reference, prepared, exported, precision, quantized=data)
    clock.lap("verify")

    shapes = dict(zip(exported.input_names, profile.shapes(exported.inputs)))
    try:
        build = chosen.build(data, replace(options, shapes=shapes), notify)
    except BuildError as error:
        if report.ok:
            raise
        # Its kernels are written for whole vectors of channels: other widths it sometimes has no kernel for.
        raise LoweringError(f"{error}; {report.summary()}: prune with align={report.multiple}") from error
    clock.lap("build")

    files: dict[Path, bytes] = {}
    if cache is not None and build.timing_cache is not None:
        files[cache] = build.timing_cache
    facts: dict[str, Any] = {
        "target": chosen.name,
        "precision": precision,
        "source": source,
        "extra": dict(extra or {}),
        "weights_sha256": sidecar.weights_sha256(gm),
        "onnx_sha256": hashlib.sha256(data).hexdigest(),
        "inputs": _described(exported, inputs),
        "outputs": exported.output_names,
        "builder": build.builder,
        "compute_capabilities": list(build.compute_capabilities),
        "verification": checked.to_json(),
        "alignment": report.to_json(),
        "plan": build.plan.to_json() if build.plan else None,
    }
    files[path] = build.data
    files[sidecar.sidecar_path(path)] = sidecar.encode(facts, build.data)
    if onnx_path is not None:
        files[onnx_path] = data
    write(files, LoweringError)
    return LowerResult(
        path,
        chosen.name,
        precision,
        len(build.data),
        checked,
        report,
        build.plan,
        build.builder,
        onnx_path,
        clock.laps,
    )


def check_precision(target: Target, precision: str, loader: Iterable[Any] | None = None) -> None:
    """Raise LoweringError where these do not go together."""
    dtype_of(precision)
    if precision == "int8" and loader is None:
        raise LoweringError(
            "int8 needs a calibration loader, a few batches of the model's own inputs: edp-fx lower --calibrate"
        )
    if precision != "int8" and loader is not None:
        raise LoweringError(f"a calibration loader is for int8, not for {precision}")
    if precision in target.lacks:
        raise LoweringError(target.lacks[precision])


def _described(exported: Exported, inputs: tuple[Tensor, ...]) -> list[dict[str, Any]]:
    shapes = exported.profile.shapes(exported.inputs)
    rows = zip(exported.input_names, shapes, exported.inputs)
    return [
        {"name": name, "dtype": str(x.dtype).removeprefix("torch."), "min": low, "opt": usual, "max": high}
        for name, (low, usual, high), x in rows
    ]


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = round(now - self._last, 3), now


lower.load_engine = load_engine  # type: ignore[attr-defined]
