"""Channels that are the same constant for every input: move the constant into the reader's bias, then they are dead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edp_fx.errors import PassError
from edp_fx.frontend.running import called_module
from edp_fx.pairs import Pair
from edp_fx.passes.base import Pass, PassReport, PassResult
from edp_fx.passes.elementwise import ELEMENTWISE

_PLAIN_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Fold channels with zero weights but a bias, or batch norm shift, into the layer that alone reads them.

    Exact where between the two stand only batch norm and elementwise modules and the reader pads with nothing: then
    W·(x + c) = W·x + W·c with the second term a bias. Elsewhere the channel is refused.
    """

    name: ClassVar[str] = "fold_constants"
    preserves: ClassVar[bool] = True

    def requires(self, gm: fx.GraphModule) -> None:
        """Pairs are explicit: the weight of one called as a whole is computed. Raises PassError naming its node."""
        for node in gm.graph.nodes:
            if isinstance(called_module(gm, node), Pair):
                raise PassError(f"{self.name}: node {node.name!r} calls a pair as a whole; unfuse pairs first")

    def call(self, gm: fx.GraphModule) -> PassResult:
        report = PassReport(self.name)
        for node in gm.graph.nodes:
            reader = called_module(gm, node)
            if not isinstance(reader, (*_PLAIN_CONVS, nn.Linear)) or not isinstance(node.args[0], fx.Node):
                continue
            chain = _chain_before(gm, node)
            if chain is None:
                continue
            constant = _constant_channels(chain, reader)
            if constant is None or not bool((constant != 0).any()):
                continue
            if isinstance(reader, _PLAIN_CONVS) and (reader.groups != 1 or any(_paddings(reader))):
                report.refuse(node.name, "its zero padding would see the constant channels end at the border")
                continue
            if self.leaves(str(node.target), report):
                continue
            _fold(chain, reader, _pair_of(gm, str(node.target)), constant)
            report.rewritten.append(str(node.target))
        return PassResult(gm, bool(report.rewritten), report)

    def ensures(self, result: PassResult) -> None:
        """The channels folded are zero now. Raises PassError naming the layer that reads one that is not."""
        gm = result.graph_module
        for node in gm.graph.nodes:
            if node.op != "call_module" or node.target not in result.report.rewritten:
                continue
            reader, chain = called_module(gm, node), _chain_before(gm, node)
            constant = _constant_channels(chain, reader) if chain and reader is not None else None
            if constant is None or bool((constant != 0).any()):
                raise PassError(f"{self.name}: constant channels are left before {node.target!r}")


def _paddings(conv: nn.Module) -> tuple[int, ...]:
    padding = conv.padding
    if isinstance(padding, str):
        return (0,) if padding == "valid" else tuple(size - 1 for size in conv.kernel_size)  # type: ignore[union-attr]
    return tuple(padding)  # type: ignore[arg-type]


def _chain_before(gm: fx.GraphModule, node: fx.Node) -> list[nn.Module] | None:
    """Producer, then batch norms and elementwise modules up to ``node``, each read by the next alone; or None."""
    chain: list[nn.Module] = []
    calls = [str(one.target) for one in gm.graph.nodes if one.op == "call_module"]
    current = node.args[0]
    while isinstance(current, fx.Node) and len(current.users) == 1:
        module = called_module(gm, current)
        if module is None or calls.count(str(current.target)) != 1:
            return None
        chain.insert(0, module)
        if isinstance(module, (*_PLAIN_CONVS, nn.Linear)):
            return chain
        plain_norm = isinstance(module, _BatchNorm) and type(module).forward is _BatchNorm.forward
        if not (plain_norm or type(module) in ELEMENTWISE):
            return None
        current = current.args[0]
    return None


@torch.no_grad()
def _constant_channels(chain: list[nn.Module], reader: nn.Module) -> Tensor | None:
    """The value of each channel whose producer weights are zero, 0 elsewhere; None where sizes do not fit."""
    producer = chain[0]
    weight: Tensor = producer.weight  # type: ignore[assignment]
    if isinstance(producer, nn.Linear) != isinstance(reader, nn.Linear):
        return None
    dead = (weight == 0).flatten(1).all(dim=1)
    if not bool(dead.any()):
        return None
    bias = producer.bias if isinstance(producer.bias, Tensor) else weight.new_zeros(weight.shape[0])
    value = bias.reshape(1, -1, *(1 for _ in weight.shape[2:])).clone()  # activations may work in place
    for module in chain[1:]:
        training = module.training
        module.eval()
        value = module(value)
        module.train(training)
    return torch.where(dead, value.reshape(-1), 0)


def _pair_of(gm: fx.GraphModule, target: str) -> Pair | None:
    """The pair whose basis ``target`` is: a basis has no bias, so its coefficient takes the constant."""
    home, _, leaf = target.rpartition(".")
    owner = gm.get_submodule(home)
    return owner if leaf == "basis" and isinstance(owner, Pair) else None


def weighted(weight: Tensor, vector: Tensor) -> Tensor:
    """What a layer of this weight [outputs, inputs, *kernel] makes of the same values [inputs] at all positions."""
    return weight.flatten(2).sum(2) @ vector if weight.ndim > 2 else weight @ vector


@torch.no_grad()
def _fold(chain: list[nn.Module], reader: nn.Module, pair: Pair | None, constant: Tensor) -> None:
    weight: nn.Parameter = reader.weight  # type: ignore[assignment]
    shift, biased = weighted(weight, constant), reader
    if pair is not None:
        biased = pair.coefficient
        shift = weighted(biased.weight, shift)  # type: ignore[arg-type]
    if isinstance(biased.bias, Tensor):
        biased.bias = _changed(biased.bias, biased.bias + shift)
    else:
        biased.bias = nn.Parameter(shift.clone(), requires_grad=weight.requires_grad)
    gone = constant != 0
    reader.weight = _changed(weight, weight.index_fill(1, gone.nonzero().flatten(), 0))
    for module in chain:
        for name in ("bias", "weight") if isinstance(module, _BatchNorm) else ("bias",):
            vector = getattr(module, name, None)
            if isinstance(vector, Tensor):
                setattr(module, name, _changed(vector, vector.masked_fill(gone, 0)))


def _changed(old: Tensor, new: Tensor) -> nn.Parameter:
    return nn.Parameter(new, requires_grad=old.requires_grad)
