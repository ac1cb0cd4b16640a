"""A graph module as JSON and back: nodes in order, layers with their plain attributes, tensors by name."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from edp_fx.checkpoint.allowed import (
    check_attribute,
    check_identifier,
    check_method,
    class_path,
    function,
    function_name,
    layer_class,
)
from edp_fx.checkpoint.values import decode, encode
from edp_fx.errors import CheckpointError

_PLAIN = frozenset(nn.Module().__dict__)


def describe(gm: fx.GraphModule) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(JSON of the structure, its tensors by name). Raises CheckpointError for what cannot be written down."""
    called = {str(node.target) for node in gm.graph.nodes if node.op == "call_module"}
    tensors: dict[str, Tensor] = {}
    primary: dict[int, str] = {}
    tied: dict[str, str] = {}
    layers: dict[str, Any] = {}

    def add(name: str, tensor: Tensor) -> None:
        if id(tensor) in primary:
            tied[name] = primary[id(tensor)]
        else:
            primary[id(tensor)] = name
            tensors[name] = tensor.detach()

    for path, module in gm.named_modules(remove_duplicate=False):
        inside = any(path == one or path.startswith(f"{one}.") for one in called)
        entry: dict[str, Any] = {"class": class_path(module) if inside else "torch.nn.Module"}
        if inside:
            entry["attributes"] = {
                key: encode(value)
                for key, value in vars(module).items()
                if key not in _PLAIN and not isinstance(value, Tensor)
            }
        entry["parameters"] = {
            key: value is not None and value.requires_grad for key, value in module._parameters.items()
        }
        entry["no_parameters"] = [key for key, value in module._parameters.items() if value is None]
        entry["buffers"] = {key: key not in module._non_persistent_buffers_set for key in module._buffers}
        entry["no_buffers"] = [key for key, value in module._buffers.items() if value is None]
        constants = [key for key, value in vars(module).items() if isinstance(value, Tensor)]
        entry["constants"] = constants
        for table in (module._parameters, module._buffers, {key: vars(module)[key] for key in constants}):
            for key, value in table.items():
                if value is not None:
                    add(f"{path}.{key}".lstrip("."), value)
        layers[path] = entry
    nodes = []
    for node in gm.graph.nodes:
        target: Any = node.target
        if node.op == "call_function":
            target = function_name(node.target)
        elif node.op == "call_method":
            check_method(node.target)
        nodes.append(
            {
                "op": node.op,
                "name": node.name,
                "target": target,
                "args": encode(node.args),
                "kwargs": encode(dict(node.kwargs)),
            }
        )
    shapes = {name: [list(one.shape), str(one.dtype).removeprefix("torch.")] for name, one in tensors.items()}
    return {"nodes": nodes, "layers": layers, "tensors": shapes, "tied": tied}, tensors


def rebuild(structure: dict[str, Any], tensors: dict[str, Tensor]) -> fx.GraphModule:
    """The graph module of :func:`describe`'s JSON with the given tensors. Executes nothing but constructors."""
    _check_tensors(structure, tensors)
    root = nn.Module()
    tied = structure["tied"]
    made: dict[str, Tensor] = {}

    def tensor(name: str, trainable: bool | None) -> Tensor:
        source = tied.get(name, name)
        if source not in tensors:
            raise CheckpointError(f"the weights lack {name!r}: the file is damaged or belongs to another recipe")
        if source not in made:
            value = tensors[source]
            made[source] = nn.Parameter(value, requires_grad=trainable) if trainable is not None else value
        return made[source]

    for path, entry in structure["layers"].items():
        module: nn.Module = root
        if path:
            check_identifier(path, "layer name")
            kind = layer_class(entry["class"])
            module = kind.__new__(kind)
            nn.Module.__init__(module)
            owner, _, leaf = path.rpartition(".")
            root.get_submodule(owner).add_module(leaf, module)
        for key, value in entry.get("attributes", {}).items():
            check_identifier(key, "attribute")
            if key in _PLAIN or hasattr(nn.Module, key):
                raise CheckpointError(
                    f"the recipe sets the attribute {key!r} of {path!r}: the file is not to be trusted"
                )
            object.__setattr__(module, key, decode(value, _no_node))
        prefix = f"{path}." if path else ""
        for key, trainable in entry["parameters"].items():
            check_identifier(key, "parameter")
            none = key in entry["no_parameters"]
            module.register_parameter(key, None if none else tensor(prefix + key, bool(trainable)))  # type: ignore[arg-type]
        for key, persistent in entry["buffers"].items():
            check_identifier(key, "buffer")
            none = key in entry["no_buffers"]
            module.register_buffer(key, None if none else tensor(prefix + key, None), persistent=bool(persistent))
        for key in entry["constants"]:
            check_identifier(key, "constant")
            setattr(module, key, tensor(prefix + key, None))
    return fx.GraphModule(root, _graph(structure["nodes"], root)).eval()


def _no_node(name: str) -> fx.Node:
    raise CheckpointError(f"the recipe refers to the node {name[:60]!r} outside the graph: the file is damaged")


def _check_tensors(structure: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    for name, (shape, dtype) in structure["tensors"].items():
        if name not in tensors:
            raise CheckpointError(f"the weights lack {name!r}: the file is damaged or belongs to another recipe")
        got = tensors[name]
        if list(got.shape) != shape or str(got.dtype).removeprefix("torch.") != dtype:
            raise CheckpointError(
                f"{name!r} is {list(got.shape)} {got.dtype} in the weights and {shape} {dtype} in the recipe: "
                "the two files do not belong together"
            )


def _graph(nodes: list[dict[str, Any]], root: nn.Module) -> fx.Graph:
    graph = fx.Graph()
    known: dict[str, fx.Node] = {}

    def look_up(name: str) -> fx.Node:
        if name not in known:
            raise CheckpointError(f"the recipe uses the node {name[:60]!r} before it is made: the file is damaged")
        return known[name]

    for entry in nodes:
        op, name, target = entry["op"], check_identifier(entry["name"], "node name"), entry["target"]
        args, kwargs = decode(entry["args"], look_up), decode(entry["kwargs"], look_up)
        if op == "call_function":
            target = function(target)
            if target is getattr:
                check_attribute(args[1] if len(args) > 1 else None)
        elif op == "call_method":
            check_method(target)
        elif op in ("call_module", "get_attr"):
            check_identifier(target, "target")
            _resolve(root, target, op)
        elif op in ("placeholder", "output"):
            check_identifier(target, "target")
        else:
            raise CheckpointError(f"the recipe has a node of kind {str(op)[:60]!r}: the file is damaged")
        known[name] = graph.create_node(op, target, tuple(args), dict(kwargs), name=name)
    if not nodes or nodes[-1]["op"] != "output":
        raise CheckpointError("the recipe's graph has no end: the file is truncated")
    graph.lint()
    return graph


def _resolve(root: nn.Module, target: str, op: str) -> None:
    owner, _, leaf = target.rpartition(".")
    try:
        home = root.get_submodule(owner)
    except AttributeError:
        home = None
    found = home is not None and (leaf in home._modules if op == "call_module" else hasattr(home, leaf))
    if not found:
        raise CheckpointError(f"the recipe's graph uses {target!r}, which its layers lack: the file is damaged")
