"""Fold batch norm into the layer before it: for inference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from edp_fx.errors import PassError
from edp_fx.frontend.running import called_module
from edp_fx.pairs import Pair
from edp_fx.passes.base import Pass, PassReport, PassResult


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Multiply each batch norm's scale and shift into the convolution or linear layer that alone feeds it.

    The graph is put into eval mode: folded statistics cannot be trained. In a pair the coefficient takes the norm.
    Norms with a forward of their own (an activation inside) are refused.
    """

    name: ClassVar[str] = "fold_batch_norm"
    preserves: ClassVar[bool] = True

    def requires(self, gm: fx.GraphModule) -> None:
        """Pairs are explicit: the norm behind one goes into its coefficient. Raises PassError naming the node."""
        for node in gm.graph.nodes:
            if isinstance(called_module(gm, node), Pair):
                raise PassError(f"{self.name}: node {node.name!r} calls a pair as a whole; unfuse pairs first")

    def call(self, gm: fx.GraphModule) -> PassResult:
        report = PassReport(self.name)
        gm.eval()
        calls = [str(node.target) for node in gm.graph.nodes if node.op == "call_module"]
        for node in list(gm.graph.nodes):
            norm = called_module(gm, node)
            if not isinstance(norm, _BatchNorm) or self.leaves(node.name, report):
                continue
            source = node.args[0]
            layer = called_module(gm, source)
            if type(norm).forward is not _BatchNorm.forward or not norm.track_running_stats:
                report.refuse(node.name, "its forward does more than normalise by running statistics")
            elif not isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear)):
                report.refuse(node.name, "no convolution or linear layer stands before it")
            elif len(source.users) != 1 or calls.count(str(source.target)) != 1:
                report.refuse(node.name, "the layer before it is used elsewhere too")
            else:
                if isinstance(layer, nn.Linear):
                    folded: nn.Module = fuse_linear_bn_eval(layer, norm)
                else:
                    folded = fuse_conv_bn_eval(layer, norm, transpose=isinstance(layer, nn.ConvTranspose2d))
                owner, _, leaf = str(source.target).rpartition(".")
                gm.get_submodule(owner)._modules[leaf] = folded
                node.replace_all_uses_with(source)
                gm.graph.erase_node(node)
                report.rewritten.append(node.name)
        if report.rewritten:
            gm.delete_all_unused_submodules()
            gm.recompile()
        return PassResult(gm, bool(report.rewritten), report)

    def ensures(self, result: PassResult) -> None:
        """In eval mode, every batch norm is folded or refused. Raises PassError naming the node."""
        gm = result.graph_module
        refused = {one.node for one in result.report.refused}
        for node in gm.graph.nodes:
            norm = called_module(gm, node)
            if isinstance(norm, _BatchNorm) and (norm.training or node.name not in refused):
                raise PassError(f"{self.name}: batch norm {node.name!r} was neither folded nor refused")
