"""Layers the tracer left opaque: their code may depend on sizes that no graph rewrite can reach."""

from __future__ import annotations

from torch import fx, nn
from torch.nn.modules.conv import _ConvTransposeNd

from edp_fx.channels.atoms import Where
from edp_fx.channels.resizing import RESIZABLE
from edp_fx.channels.sweep import Sweep
from edp_fx.frontend.running import submodule
from edp_fx.pairs import Pair


def freeze_opaque_leaves(gm: fx.GraphModule, sweep: Sweep) -> None:
    """Freeze what opaque modules of the user's own read, make and work on inside.

    Free are modules that own no parameters and give back the shape they are given, torch.nn's own parameterless
    ones, layers of :data:`RESIZABLE` (of a class of the user's own those that make one tensor of one), and everywhere
    the rank axes of pairs, which no code outside the pair sees. What could only be run with data freezes what it
    touches too, be it a module or a function.
    """
    for node in gm.graph.nodes:
        reason = sweep.not_run.get(node.name, "inside a module that was not traced")
        module = submodule(gm, node.target) if node.op == "call_module" else None
        free = module is None or _resizable(node, module, sweep) or _sizes_follow(node, module, sweep)
        if free and node.name not in sweep.not_run:
            continue
        where = Where(node.name, str(node.target) if module is None else type(module).__name__)
        for name in [node.name, *(one.name for one in node.all_input_nodes)]:
            for _, labels in sweep.outputs.get(name, []):
                for factor in labels:
                    sweep.ledger.freeze(where, factor.atoms, reason)
        if module is None:
            continue
        ranks = _rank_axes(module, node.target)
        for parameter, axes in sweep.parameters.items():
            if parameter.startswith(f"{node.target}."):
                for axis, atoms in axes.items():
                    if (parameter, axis) not in ranks:
                        sweep.ledger.freeze(where, atoms, reason)


def _resizable(node: fx.Node, module: nn.Module, sweep: Sweep) -> bool:
    """Whether the sizes of a layer follow its weight. A class of the user's own that takes or makes several tensors
    cuts its weight by numbers in its code."""
    own = not type(module).__module__.startswith(("torch.", "edp_fx."))
    several = len(node.all_input_nodes) != 1 or len(sweep.outputs.get(node.name, ())) != 1
    return isinstance(module, RESIZABLE) and not (own and several)


def _sizes_follow(node: fx.Node, module: nn.Module, sweep: Sweep) -> bool:
    if any(True for _ in module.parameters()):
        return False
    if type(module).__module__.startswith("torch.nn."):
        return True
    shapes = [shape for shape, _ in sweep.outputs.get(node.name, [])]
    inputs = [shape for one in node.all_input_nodes for shape, _ in sweep.outputs.get(one.name, [])]
    return len(shapes) == 1 and shapes[0] in inputs


def _rank_axes(module: nn.Module, target: str) -> set[tuple[str, int]]:
    ranks = set()
    for name, pair in module.named_modules(prefix=target):
        if isinstance(pair, Pair):
            ranks.add((f"{name}.basis.weight", 1 if isinstance(pair.basis, _ConvTransposeNd) else 0))
            ranks.add((f"{name}.coefficient.weight", 1))
    return ranks
