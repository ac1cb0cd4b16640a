"""How far the output moves when dead channels are removed: edp_fx and Torch-Pruning on the same networks.

    python -m benchmarks.exactness [--models resnet18,…] [--out FILE.csv]

Norms, biases and statistics are random; everything is float64. A random half of the channels of every exact group is
made dead in two ways: ``all``, everything that makes, scales, shifts and reads them is zero; ``weights``, only the
weights that make them are zero, as weight decay or a penalty on weights leaves them, so that the shift of a batch norm
behind keeps them at a constant. Then each tool removes what it finds dead: edp_fx by ``prune_and_merge``,
Torch-Pruning by the pruning group of every set of channels whose weights are all zero in all layers that make them.
``change`` is the largest difference of the output over its standard deviation, ``macs`` what is left of the network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.metadata import version

import torch
import torch_pruning as tp
from torch import Tensor, nn

import edp_fx
from benchmarks import rows
from edp_fx.inputs import randomize_
from edp_fx.models import load_model
from edp_fx.validation.masking import random_keep, zero_members

MODELS = "resnet18,resnet50,densenet121,mobilenetv2_100,efficientnet_b0,regnetx_002,vgg11_bn,res2net50_26w_4s"
DEATHS = {"all": ("producer", "consumer", "affine", "other"), "weights": ("producer",)}
TOOLS = ("edp_fx", "torch_pruning")
COLUMNS = (
    "model",
    *(f"{death}_{tool}_{what}" for death in DEATHS for tool in TOOLS for what in ("change", "macs")),
    "torch",
    "torch_pruning",
)


def by_torch_pruning(model: nn.Module, images: Tensor) -> nn.Module:
    """Remove every channel whose weights are zero in all layers that make it."""
    graph = tp.DependencyGraph().build_dependency(model, images)
    makers = (tp.prune_conv_out_channels, tp.prune_linear_out_channels, tp.prune_depthwise_conv_out_channels)
    for group in graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]):
        first = group[0]
        energy = torch.zeros(len(first.idxs), dtype=images.dtype)
        for dependency, indices in group:
            if dependency.handler in makers:
                energy += dependency.target.module.weight.detach().abs().flatten(1).sum(1)[indices]
        dead = [index for index, value in zip(first.idxs, energy.tolist()) if value == 0]
        if 0 < len(dead) < len(energy):
            graph.get_pruning_group(first.dep.target.module, first.dep.handler, dead).prune()
    return model


REMOVE: dict[str, Callable[[nn.Module, Tensor], nn.Module]] = {
    "edp_fx": lambda model, images: edp_fx.prune_and_merge(edp_fx.trace(model, images), images),
    "torch_pruning": by_torch_pruning,
}


def measure(name: str, repeats: int) -> dict[str, object]:
    """The row of one network."""
    loaded = load_model(name)
    model, images = loaded.model.eval().double(), loaded.example_inputs[0].double()
    randomize_(model)
    dense = edp_fx.measure(model, images).macs
    gm = edp_fx.trace(model, images)
    graph = edp_fx.analyze(gm, images)
    keep = random_keep(graph, 0, exact_only=True)
    row: dict[str, object] = {"model": name, "torch": torch.__version__, "torch_pruning": version("torch-pruning")}
    for death, roles in DEATHS.items():
        dead = copy.deepcopy(model)
        zero_members(edp_fx.trace(dead, images), graph, keep, roles)
        with torch.no_grad():
            before = dead(images)
        for tool in TOOLS:
            try:
                small = REMOVE[tool](copy.deepcopy(dead), images)
                with torch.no_grad():
                    change = float((small(images) - before).abs().max() / before.std())
            except Exception as error:
                row[f"{death}_{tool}_change"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"[:80]
                continue
            row[f"{death}_{tool}_change"] = f"{change:.1e}"
            row[f"{death}_{tool}_macs"] = round(edp_fx.measure(small, images).macs / dense, 3)
    return row


if __name__ == "__main__":
    rows.main(__doc__, MODELS, COLUMNS, measure, "benchmarks/results/exactness.csv")
