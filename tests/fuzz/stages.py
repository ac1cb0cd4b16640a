"""The road every program takes, and what must hold on the way.

Everything but ONNX runs in float64, so that what differs is wrong and not rounding.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

import edp_fx
from edp_fx.errors import EdpError
from edp_fx.inputs import copied, randomize_
from edp_fx.leaves import tensors_of
from edp_fx.validation import masking
from tests.fuzz.programs import Program

TOLERANCE = 1e-7  # of the largest value, in float64
STEPS = 4
ONNX_TOLERANCE = 2e-3  # of the largest value, in float32, of networks that amplify rounding as random ones do
BUDGETS = ({"macs": 0.6}, {"params": 0.6}, {"macs": 0.4})
KINDS = (None, ("channel",), ("rank",), ("rank", "channel", "head"))


class Wrong(Exception):
    """A network came out that does not compute what it should."""


class Invalid(Exception):
    """The program itself does not run: the generator's fault."""


def form(output: Any) -> Any:
    """What holds the tensors of an output: types, names and shapes."""
    if isinstance(output, Tensor):
        return tuple(output.shape)
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        fields = {one.name: getattr(output, one.name) for one in dataclasses.fields(output)}
        return type(output).__name__, form(fields)
    if isinstance(output, Mapping):
        return {key: form(value) for key, value in output.items()}
    if isinstance(output, (tuple, list)):
        return type(output).__name__, *map(form, output)
    return output


def as_saved(form: Any) -> Any:
    """The form of an output after save and load: a file knows no dataclass and gives a dictionary."""
    if isinstance(form, tuple) and len(form) == 2 and isinstance(form[0], str) and isinstance(form[1], dict):
        form = form[1]
    if isinstance(form, dict):
        return {key: as_saved(value) for key, value in form.items()}
    return tuple(map(as_saved, form)) if isinstance(form, tuple) else form


@dataclasses.dataclass
class Ran:
    """What one run gave: the form of the output, its tensors, gradients of the inputs and buffers after it."""

    form: Any
    outputs: list[Tensor]
    gradients: list[Tensor] = dataclasses.field(default_factory=list)
    buffers: dict[str, Tensor] = dataclasses.field(default_factory=dict)


def run(model: nn.Module, inputs: tuple[Tensor, ...], train: bool = False) -> Ran:
    """Run a model, in train mode backwards too; its buffers and modes stay as they are."""
    flags = [(module, module.training) for module in model.modules()]
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    leaves = [one.clone().requires_grad_(train) for one in inputs]
    try:
        model.train(train)
        torch.manual_seed(1)
        with torch.set_grad_enabled(train):
            output = model(*leaves)
        ran = Ran(form(output), tensors_of(output))
        if train:
            torch.manual_seed(2)
            loss = sum((one * torch.randn_like(one)).sum() for one in ran.outputs if one.is_floating_point())
            gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
            ran.outputs = [one.detach() for one in ran.outputs]
            ran.gradients = [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, leaves)]
            ran.buffers = {n: b.clone() for n, b in model.named_buffers() if b.is_floating_point()}
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)
        for module, flag in flags:
            module.training = flag
    return ran


def distance(a: list[Tensor], b: list[Tensor]) -> float:
    """The largest difference over the largest value, tensor by tensor; infinite where shapes differ."""
    if [one.shape for one in a] != [one.shape for one in b]:
        return float("inf")
    worst = 0.0
    for one, other in zip(a, b):
        if one.numel():
            gap = float((one - other).abs().max()) if one.is_floating_point() else float((one != other).any())
            worst = max(worst, gap / max(float(one.abs().max()), 1e-6)) if gap == gap else float("inf")
    return worst


def same(what: str, before: Ran, after: Ran, tolerance: float) -> None:
    """Raise :class:`Wrong` where two runs differ."""
    if before.form != after.form:
        raise Wrong(f"{what}: the output was {before.form}, is {after.form}")
    for part in ("outputs", "gradients"):
        found = distance(getattr(before, part), getattr(after, part))
        if not found <= tolerance:
            raise Wrong(f"{what}: {part} differ by {found:.1e}")
    common = [name for name in before.buffers if name in after.buffers]
    found = distance([before.buffers[n] for n in common], [after.buffers[n] for n in common])
    if not found <= tolerance:
        raise Wrong(f"{what}: buffers differ by {found:.1e}")


class Road:
    """One program on its way; each stage is a method, run in order by :meth:`walk`.

    Attributes:
        stage: the one that runs, for reports.
        facts: counts worth knowing: pairs, groups, what validation undid.
    """

    def __init__(self, program: Program, seed: int, onnx: bool) -> None:
        self.program, self.seed, self.onnx = program, seed, onnx
        self.stage = "build"
        self.facts: dict[str, Any] = {}
        self.small: fx.GraphModule | None = None

    def walk(self) -> list[tuple[str, str]]:
        """Go through all stages; gives the refusals of one line that later stages could do without, by stage.

        Raises:
            EdpError: a refusal that nothing comes after.
            Wrong: a network that is not what it should be.
            Invalid: the program does not run by itself.
        """
        stages: list[Callable[[], None]] = [
            self.build, self.trace, self.insert, self.analyze, self.prune, self.train, self.prune_and_merge, self.save,
        ]  # fmt: skip
        refused: list[tuple[str, str]] = []
        for stage in stages + [self.lower] * self.onnx:
            self.stage = stage.__name__
            try:
                stage()
            except EdpError as error:
                if stage not in (self.prune, self.train, self.save) or "\n" in str(error).strip():
                    raise
                refused.append((self.stage, str(error)))
        return refused

    def inputs(self, batch: int) -> tuple[Tensor, ...]:
        """Random inputs."""
        generator = torch.Generator().manual_seed(batch)
        return tuple(torch.randn(batch, *s, generator=generator, dtype=torch.float64) for s in self.program.shapes)

    def build(self) -> None:
        """Make the network; it must run at several batch sizes and be finite."""
        try:
            torch.manual_seed(self.seed)
            self.model = self.program.build()
            randomize_(self.model, self.seed)
            self.model.double()
            for batch in (2, 3):
                runs = [run(self.model, self.inputs(batch), train) for train in (False, True)]
        except Exception as error:
            raise Invalid(f"{type(error).__name__}: {error}") from error
        if not all(bool(t.isfinite().all()) for one in runs for t in one.outputs + one.gradients):
            raise Invalid("numbers that are not finite")
        self.evaluated, self.trained = runs
        if self.noise() > TOLERANCE / 10:
            raise Invalid("amplifies rounding")

    def noise(self) -> float:
        """What moving the inputs by rounding does to the network's outputs and gradients."""
        inputs = tuple(x + 1e-14 * torch.randn_like(x) for x in self.inputs(3))
        one, other = self.evaluated, run(self.model, inputs)
        return distance(one.outputs, other.outputs)

    def both(self, what: str, model: nn.Module) -> None:
        """The network against the program's, in both modes."""
        same(f"{what}, eval mode", self.evaluated, run(model, self.inputs(3)), TOLERANCE)
        same(f"{what}, train mode", self.trained, run(model, self.inputs(3), train=True), TOLERANCE)

    def trace(self) -> None:
        """The graph equals the program, which is left as it was."""
        before = copy.deepcopy(self.model.state_dict())
        self.graph: fx.GraphModule = edp_fx.trace(self.model, self.inputs(2))
        after = self.model.state_dict()
        if list(before) != list(after) or not all(torch.equal(before[key], after[key]) for key in before):
            raise Wrong("tracing changed the model's state")
        self.both("the model after the trace", self.model)
        self.both("the graph", self.graph)
        self.facts["opaque"] = len(self.graph.meta["edp_fx.trace"].opaque)

    def insert(self) -> None:
        """Pairs compute the same."""
        self.inserted: fx.GraphModule = edp_fx.insert(copied(self.graph))
        self.both("with pairs", self.inserted)
        self.facts["pairs"] = len(self.inserted.meta["edp_fx.reports"][-1].rewritten)

    def analyze(self) -> None:
        """Groups of the network with or without pairs."""
        self.subject = copy.deepcopy(self.inserted if self.seed % 2 else self.graph).eval()
        self.channels = edp_fx.analyze(self.subject, self.inputs(2))
        self.facts["groups"] = len(self.channels.prunable)

    def prune(self) -> None:
        """A random keep-set against masked execution."""
        exact = self.seed % 3 == 0
        keep = masking.random_keep(self.channels, self.seed, 0.6, exact_only=exact)
        masked = masking.masked_run(self.subject, self.channels, keep, self.inputs(3))
        pruned = masking.pruned_run(self.subject, self.channels, keep, self.inputs(3))
        found = distance(masked, pruned)
        if not found <= TOLERANCE:
            raise Wrong(f"pruned against masked ({'exact groups' if exact else 'all groups'}): {found:.1e}")

    def train(self) -> None:
        """A few steps to a budget: the shrinking changes nothing, the outputs keep their form."""
        network = copy.deepcopy(self.inserted).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
        compressor = edp_fx.Compressor(
            network,
            self.inputs(2),
            align=1,
            kinds=KINDS[self.seed % len(KINDS)],
            optimizer=optimizer,
            total_steps=STEPS,
            decisions=2,
            **BUDGETS[self.seed % len(BUDGETS)],
        )
        torch.manual_seed(0)
        for _ in range(STEPS):
            optimizer.zero_grad()
            sum(one.square().mean() for one in tensors_of(network(*self.inputs(4)))).backward()
            optimizer.step()
            compressor.step()
        self.small = small = compressor.finish()
        if not compressor.max_rel_diff <= TOLERANCE:
            raise Wrong(f"shrinking changed the outputs by {compressor.max_rel_diff:.1e}")
        found = run(small, self.inputs(3))
        if found.form != self.evaluated.form:
            raise Wrong(f"after training the output is {found.form}, was {self.evaluated.form}")

    def prune_and_merge(self) -> None:
        """Zeroed exact channels and ranks go, pairs are merged: the function stays."""
        zeroed = copy.deepcopy(self.inserted).eval()
        channels = self.channels if self.seed % 2 else edp_fx.analyze(zeroed, self.inputs(2))  # of the same network
        keep = masking.random_keep(channels, self.seed, exact_only=True)
        masking.zero_members(zeroed, channels, keep, ("producer", "consumer", "affine", "other"))
        merged = edp_fx.prune_and_merge(zeroed, self.inputs(2))
        same("pruned and merged", run(zeroed, self.inputs(3)), run(merged, self.inputs(3)), TOLERANCE)
        if self.seed % 3 == 0 or self.small is None:
            self.small = merged

    def save(self) -> None:
        """What is saved is loaded, computes the same in eval mode, and runs in train mode."""
        assert self.small is not None
        with tempfile.TemporaryDirectory() as folder:
            path = edp_fx.save(self.small, Path(folder) / "model", self.inputs(2))
            loaded = edp_fx.load(path)
        kept = run(self.small, self.inputs(3))
        kept.form = as_saved(kept.form)
        same("loaded", kept, run(loaded, self.inputs(3)), TOLERANCE)
        run(loaded, self.inputs(3), train=True)

    def lower(self) -> None:
        """The ONNX file under onnxruntime at another batch size."""
        import onnxruntime

        small = copy.deepcopy(self.small).float().eval()
        inputs = tuple(one.float() for one in self.inputs(5))
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = Path(folder) / "model.onnx"
            edp_fx.lower(small, tuple(one[:2] for one in inputs), path, target="onnx")
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            names = [one.name for one in session.get_inputs()]
            found = session.run(None, {name: np.asarray(one) for name, one in zip(names, inputs)})
        want = run(small, inputs).outputs
        gap = distance(want, [torch.from_numpy(one) for one in found])
        if not gap <= ONNX_TOLERANCE:
            raise Wrong(f"onnxruntime differs from torch by {gap:.1e}")
