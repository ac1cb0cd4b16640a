"""Holds passes to their promise of the same function: what breaks it is undone, piece by piece, and reported."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from edp_fx.errors import EdpError, PassError, typed_line
from edp_fx.inputs import device_of
from edp_fx.passes.base import Pass, PassReport, PassResult
from edp_fx.validation.compare import last_bit, relative
from edp_fx.validation.precision import computes_in_single, in_double
from edp_fx.validation.samples import hidden, outputs, random_inputs, smaller_inputs, tell
from edp_fx.validation.search import to_blame
from edp_fx.validation.undo import Undo, swapped

SINGLE = 2e-5  # relative difference of outputs in float32 that rounding explains
DOUBLE = 1e-9
INSIDE = 1e-4  # in a float64 network that computes in float32 inside
NOISE = 10.0  # times what the last bit of the inputs does
SMALL = 150_000_000  # parameters of a network of which a copy in float64 is made


class Before:
    """A network before a change, and what it gave then.

    Args:
        gm: the network.
        inputs: what it is run on.
        whatever: compare with random values in the places of those an initialisation leaves alike, see
            :func:`~edp_fx.validation.samples.hidden`: for a change that does not look at these.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        inputs: Sequence[Tensor],
        whatever: bool = False,
        known: list[Tensor] | None = None,
    ) -> None:
        self.gm, self.inputs = gm, tuple(inputs)
        self.undo = Undo(gm)
        self.now: list[Tensor] | None = None
        self._hidden = hidden(gm) if whatever else {}
        self._gave: dict[frozenset[int], list[Tensor]] = {}
        if known is not None:
            self._gave[frozenset()] = known
        self._outputs()

    @property
    def gave(self) -> list[Tensor]:
        """Its outputs before the change."""
        return self._outputs()

    def _outputs(self) -> list[Tensor]:
        key = frozenset(self._hidden)
        if key not in self._gave:
            with swapped(self.gm, self._hidden):
                self._gave[key] = outputs(self.gm, self.inputs)
        return self._gave[key]

    def difference(self) -> float:
        """Of the network as it is now: of its outputs, relative; infinite where it does not run."""
        left = {
            id(one) for module in self.gm.modules() for one in (*module._parameters.values(), *module._buffers.values())
        }
        if not self._hidden.keys() <= left:  # a gain that went into a weight
            self._hidden = {key: value for key, value in self._hidden.items() if key in left}
            now = Undo(self.gm)
            self.undo.restore()
            self._outputs()
            now.restore()
        try:
            with swapped(self.gm, self._hidden):
                self.now = outputs(self.gm, self.inputs)
                return relative(self._outputs(), self.now)
        except Exception:
            return float("inf")

    def tolerance(self) -> float:
        """What rounding explains, of the restored network: at least a constant, more where it blows up rounding."""
        double = all(one.dtype is torch.float64 for one in self._outputs())
        with swapped(self.gm, self._hidden):
            noise = relative(self._outputs(), outputs(self.gm, last_bit(self.inputs)))
            least = SINGLE if not double else INSIDE if computes_in_single(self.gm, self.inputs) else DOUBLE
        return max(least, NOISE * noise)


def blame(
    gm: fx.GraphModule,
    inputs: Sequence[Tensor],
    pieces: Sequence[Any],
    change: Callable[[fx.GraphModule, Sequence[Any]], Any],
    whatever: bool = False,
) -> dict[Any, float]:
    """Which pieces of a change alter the outputs of ``gm`` beyond rounding, and by how much each.

    In float64 on a copy where the network is small enough, else on itself against its own noise; it stays as it is.

    Args:
        gm: the network before the change.
        inputs: what it is run on.
        pieces: of the change, each of which can be made or not.
        change: makes some of the pieces of a network like ``gm``.
        whatever: see :class:`Before`.
    """
    small = sum(one.numel() for one in gm.parameters()) <= SMALL
    network = in_double(copy.deepcopy(gm)) if small else gm
    before = Before(network, in_double(tuple(inputs)) if small else inputs, whatever)

    def difference(part: Sequence[Any]) -> float:
        try:
            change(network, part)
            return before.difference()
        except Exception:
            return float("inf")
        finally:
            before.undo.restore()

    return to_blame(pieces, difference, before.tolerance())


class Validator:
    """Runs passes on one network, one after the other, and compares its outputs before and after each.

    Args:
        gm: the network; changed in place by the passes, and by nothing else.
        inputs: what it is run on; random ones of these shapes where they have no data.
        whatever: see :class:`Before`.
        small: random inputs of smaller images where the network runs on them; those given where not.
        check: without it the passes just run.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        inputs: Sequence[Tensor],
        *,
        whatever: bool = False,
        small: bool = False,
        check: bool = True,
    ) -> None:
        self.gm, self._whatever = gm, whatever
        self._now: list[Tensor] | None = None
        home = device_of(gm)
        self.unchecked = None if check else "not asked for"
        if check and (home is None or home.type == "meta"):
            self.unchecked = "the network has no data"
        home = home or torch.device("cpu")
        if small:
            self._inputs = list(smaller_inputs(inputs, home)) if self.unchecked is None else []
        else:
            meta = self.unchecked is None and any(one.is_meta for one in inputs)
            self._inputs = [random_inputs(inputs, home) if meta else tuple(inputs)]

    def run(self, one: Pass) -> PassReport:
        """The pass's report, with ``facts["max_rel_diff"]``, or with ``facts["unchecked"]``, why there is none.

        Pieces that change the outputs are left as they were: they are among the refused with the difference, and in
        ``facts["undone"]``.

        Raises:
            PassError: the pass fails; the network is as it was.
        """
        if self.unchecked is not None or not one.preserves:
            self._now = None
            return self._noted(one(self.gm).report, unchecked=self.unchecked)
        try:
            before = self._before()
        except Exception as error:
            return self._noted(one(self.gm).report, unchecked=f"the network does not run: {typed_line(error)}")
        result = self._try(one, before.undo)
        if not result.modified:
            return result.report
        found = before.difference()
        if found > SINGLE:
            before.undo.restore()
            if found > before.tolerance():
                result, found = self._without_the_guilty(one, result, before)
            else:
                result = self._try(one, before.undo)
        self._now = before.now
        return self._noted(result.report, max_rel_diff=found)

    def _before(self) -> Before:
        """The network as it is, on the first of the inputs that it runs on and that tell something."""
        known = None if self._whatever else self._now
        while True:
            last = len(self._inputs) == 1
            try:
                before = Before(self.gm, self._inputs[0], self._whatever, known)
                if last or tell(before.gave):
                    return before
            except Exception:
                if last:
                    raise
            del self._inputs[0]

    def _without_the_guilty(self, one: Pass, result: PassResult, before: Before) -> tuple[PassResult, float]:
        pieces = list(dict.fromkeys(one.pieces(result.report)))

        def change(network: fx.GraphModule, part: Sequence[Any]) -> None:
            left = dict.fromkeys((piece for piece in pieces if piece not in part), "left out to find what is to blame")
            replace(one, leave={**one.leave, **left})(network)

        guilty = blame(self.gm, before.inputs, pieces, change, self._whatever)
        reasons = {
            piece: f"it changed the outputs by {by:.1e} relative, and was undone" for piece, by in guilty.items()
        }
        result = self._try(replace(one, leave={**one.leave, **reasons}), before.undo)
        if guilty:
            result.report.facts["undone"] = reasons
        return result, before.difference()

    def _try(self, one: Pass, undo: Undo) -> PassResult:
        try:
            return one(self.gm)
        except Exception as error:
            undo.restore()
            if isinstance(error, EdpError):
                raise
            raise PassError(f"{one.name}: fails with {typed_line(error)}; the network is as it was") from error

    def _noted(self, report: PassReport, **facts: Any) -> PassReport:
        report.facts.update({name: value for name, value in facts.items() if value is not None})
        return report
