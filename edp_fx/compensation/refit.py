"""A network that lost channels or ranks is refitted, layer after layer, to what the whole network computed.

What a removed channel gave is predicted from those that are kept: x_P ≈ A·x_R + c by least squares, so that its reader
takes W_R + W_P·A and the bias W_P·c (closed form: VBP, arXiv 2507.12988; CORP, arXiv 2602.05243). Here a layer's
residual, what the whole network puts out there less what the small one does, is predicted from the patches the layer
really sees: the same where only its own inputs lost something, and it makes up, too, for what is wrong before it (He,
Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, section 3.2). A padded border is a
patch like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd

from edp_fx.compensation.fits import Bias, Fit, Statistics, Stop, Sum, Weights
from edp_fx.compensation.maps import LinearMap, watched
from edp_fx.compensation.side import Side, Values, held
from edp_fx.compensation.sums import branch_of, scale_and_shift
from edp_fx.inputs import COMPUTE_LAYERS
from edp_fx.passes.base import PassReport
from edp_fx.progress import Look, nothing

Kept = Mapping[str, Mapping[int, np.ndarray]]
Inputs = tuple[Tensor, ...]
MEMORY = 2e9  # bytes that may be kept of all batches between two layers
LARGEST = 5000  # features; of more the moments would not fit
RIDGE = 1e-3  # share of the mean variance of what a layer sees


class Refit:
    """Refits ``small`` in place to ``whole``.

    Args:
        small: the network after removal, its pairs explicit.
        whole: the same network before it.
        kept: parameter -> axis -> the indices of ``whole`` that ``small`` has.
        batches: inputs of the network, a few images each.
        ridge: of :func:`~edp_fx.compensation.moments.regression`.
        look: told of each layer.
    """

    def __init__(
        self,
        small: fx.GraphModule,
        whole: fx.GraphModule,
        kept: Kept,
        batches: Sequence[Inputs],
        ridge: float = RIDGE,
        look: Look = nothing,
    ) -> None:
        self._small, self._whole, self._kept = Side(small), Side(whole), kept
        self._batches, self._ridge, self._look = list(batches), ridge, look
        self._modules = dict(small.named_modules())
        self.report = PassReport("compensate")

    @torch.no_grad()
    def run(self) -> PassReport:
        """Do it; says which layers were refitted, and which not and why."""
        with evaluating(self._small.gm), evaluating(self._whole.gm):
            stops, most = self._plan()
            images = sum(len(batch[0]) for batch in self._batches)
            few = max(1, int(len(self._batches) * MEMORY / max(1.0, most * images)))
            self._batches = self._batches[:few]
            self._walk(stops)
        self.report.rewritten = [stop.name for stop in stops]
        self.report.facts["images"] = sum(len(batch[0]) for batch in self._batches)
        return self.report

    # -- what is to be refitted ---------------------------------------------------------------------------

    def _plan(self) -> tuple[list[Stop], int]:
        """The layers that do not see what they saw, found on one image; and the most bytes an image kept between two
        of them takes."""
        stops: list[Stop] = []
        most = 0
        one = self._batches[0]
        if len({len(tensor) for tensor in one}) == 1:
            one = tuple(tensor[:1] for tensor in one)
        changed: set[fx.Node] = set()
        fitted: set[fx.Node] = set()
        values: Values = {}
        lost = {self._layer(name) for name, axes in self._kept.items() if set(axes) - {self._outputs(name)}}
        lost |= {name.removesuffix(".coefficient") for name in lost}  # of pairs that were merged
        for number, node in enumerate(self._small.nodes):
            target = str(node.target) if node.op == "call_module" else ""
            moved = target in lost or any(before in changed for before in node.all_input_nodes)
            if moved and target:
                before = set(node.all_input_nodes)
                stop = self._stop(number, values, alone=not before & fitted)
                if stop is not None:
                    if stops and stop.there < stops[-1].until:  # it lies before the sum, and is fitted itself
                        stops[-1] = replace(stops[-1], sum=None)
                    stops.append(stop)
                    most = max(most, held(values))
                    if stop.fit is Weights:
                        fitted.add(node)
            if moved:
                changed.add(node)
            self._small.run(values, one, number, number + 1)
        return stops, 2 * most

    @staticmethod
    def _layer(parameter: str) -> str:
        return parameter.rpartition(".")[0]

    def _outputs(self, parameter: str) -> int:
        """The axis of a parameter along which its layer's outputs lie."""
        layer = self._modules.get(self._layer(parameter))
        return int(isinstance(layer, _ConvTransposeNd) and parameter.endswith(".weight"))

    def _stop(self, number: int, values: Values, *, alone: bool) -> Stop | None:
        """How the layer at a position of the small network is refitted; None where it is not."""
        node = self._small.nodes[number]
        name, module = str(node.target), self._small.module(number)
        if isinstance(module, _BatchNorm):
            if not alone or module.running_mean is None or module.running_var is None:
                return None
            return self._matched(name, number, f"{name}.running_mean", Statistics)
        if not isinstance(module, COMPUTE_LAYERS):
            return None
        outputs, found = watched(module, self._small.call(number, values))
        if isinstance(found, LinearMap):
            features = module.weight[0].numel()
            if features <= LARGEST:
                stop = self._matched(name, number, f"{name}.weight", Weights)
                return None if stop is None else replace(stop, sum=self._sum(stop, values, outputs, found.axis))
            found = f"its {features} features are too many"
        biased = isinstance(module._parameters.get("bias"), Tensor)
        stop = self._matched(name, number, f"{name}.weight", Bias) if biased else None
        self.report.refuse(name, found + ("; its bias makes up for the mean" if stop is not None else ""))
        return stop

    def _matched(self, name: str, number: int, parameter: str, fit: type[Fit]) -> Stop | None:
        """The same layer of the whole network; a pair's second layer stands for the layer it was."""
        there = self._whole.calls.get(name, self._whole.calls.get(name.removesuffix(".coefficient"), []))
        if len(there) != 1 or len(self._small.calls[name]) != 1:
            self.report.refuse(name, "it is called more than once, or was not there before")
            return None
        merged = f"{name}.coefficient.weight"
        rows = self._kept.get(parameter, self._kept.get(merged, {})).get(self._outputs(parameter))
        return Stop(name, number, there[0], None if rows is None else torch.as_tensor(np.asarray(rows)), fit)

    def _sum(self, stop: Stop, values: Values, outputs: Tensor, axis: int) -> Sum | None:
        """The sum that the layer's outputs go into, in both networks."""
        here, there = branch_of(self._small, stop.here), branch_of(self._whole, stop.there)
        if here is None or there is None:
            return None
        other = values[here.other]
        if not isinstance(other, Tensor) or torch.broadcast_shapes(other.shape, outputs.shape) != outputs.shape:
            return None
        found = scale_and_shift(self._small, here, outputs, axis)
        return None if found is None else Sum(here.other, there.end, *found)

    # -- refitting ----------------------------------------------------------------------------------------

    def _walk(self, stops: Sequence[Stop]) -> None:
        kept: list[tuple[Values, Values]] = [({}, {}) for _ in self._batches]
        here = there = 0
        for number, stop in enumerate(stops):
            self._look(f"refitting {len(stops)} layers", number, len(stops))
            fit = stop.fit(self._small, self._whole, stop, len(self._batches), self._ridge)
            for inputs, (small, whole) in zip(self._batches, kept, strict=True):
                self._small.run(small, inputs, here, stop.here)
                self._whole.run(whole, inputs, there, stop.until)
                fit.see(small, whole)
            fit.apply()
            here, there = stop.here, stop.until
        if stops:
            self._look("refitting", len(stops), len(stops))


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """In eval mode; each module back in its own afterwards, whatever else was changed of it."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
