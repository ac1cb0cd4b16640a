"""A graph module as JSON and back: nodes in order, layers with their plain attributes, tensors by name."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import types
from collections.abc import Callable, Iterator
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
from edp_fx.checkpoint.plain import plain
from edp_fx.checkpoint.values import decode, encode
from edp_fx.errors import CheckpointError

_PLAIN = frozenset(nn.Module().__dict__)


def describe(gm: fx.GraphModule) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(JSON of the structure, its tensors by name). Raises CheckpointError for what cannot be written down."""
    tensors: dict[str, Tensor] = {}
    primary: dict[int, str] = {}
    tied: dict[str, str] = {}
    layers: dict[str, Any] = {}

    def add(name: str, tensor: Tensor) -> str:
        if id(tensor) not in primary:
            primary[id(tensor)] = name
            tensors[name] = tensor.detach()
        elif primary[id(tensor)] != name:
            tied[name] = primary[id(tensor)]
        return name

    walked = list(_walk(gm))
    for path, module, inside in walked:
        prefix = f"{path}." if path else ""
        constants = {key: value for key, value in vars(module).items() if isinstance(value, Tensor)}
        layers[path] = {
            "class": class_path(module, path) if inside else "torch.nn.Module",
            "parameters": {key: one is not None and one.requires_grad for key, one in module._parameters.items()},
            "no_parameters": [key for key, value in module._parameters.items() if value is None],
            "buffers": {key: key not in module._non_persistent_buffers_set for key in module._buffers},
            "no_buffers": [key for key, value in module._buffers.items() if value is None],
            "no_layers": [key for key, value in module._modules.items() if value is None],
            "constants": list(constants),
        }
        for key, value in (*module._parameters.items(), *module._buffers.items(), *constants.items()):
            if value is not None:
                add(prefix + key, value)
    for path, module, inside in walked:
        if inside:
            layers[path]["attributes"] = _attributes(
                path, module, lambda name, one: add(primary.get(id(one), name), one)
            )
    given = _dataclasses(gm)
    nodes = [_node(node, given) for node in gm.graph.nodes if node not in given]
    shapes = {name: [list(one.shape), str(one.dtype).removeprefix("torch.")] for name, one in tensors.items()}
    return {"nodes": nodes, "layers": layers, "tensors": shapes, "tied": tied}, tensors


def _walk(gm: fx.GraphModule) -> Iterator[tuple[str, nn.Module, bool]]:
    """Every module by each of its names, as a file can hold it, and whether a node calls it or what it is part of."""
    called = {str(node.target) for node in gm.graph.nodes if node.op == "call_module"}

    def visit(path: str, module: nn.Module, inside: bool) -> Iterator[tuple[str, nn.Module, bool]]:
        inside = inside or path in called
        if inside or module is gm:
            module = plain(module, path)
        yield path, module, inside
        for name, child in module._modules.items():
            if child is not None:
                yield from visit(f"{path}.{name}" if path else name, child, inside)

    return visit("", gm, False)


def _attributes(path: str, module: nn.Module, name_of: Callable[[str, Tensor], str]) -> dict[str, Any]:
    """A layer's plain attributes as JSON.

    Other code hangs things on layers, too (a number, a name, a logger): what hides a member of every module is left
    out, and so is what has no form in a file and no method of the layer's class speaks of.
    """
    found = {}
    kind: Any = type(module)
    for key, value in vars(module).items():
        if key in _PLAIN or isinstance(value, Tensor):
            continue
        if key == "forward":
            raise CheckpointError(
                f"cannot save the layer {path!r}: its forward was replaced by code of your own; make it a method of a "
                "class, so that it is traced through"
            )
        if hasattr(nn.Module, key):
            continue
        names = (f"{path}.{key}.{index}" for index in itertools.count())
        try:
            found[key] = encode(value, functools.partial(_named, names, name_of))
        except CheckpointError as error:
            if key in _names_in(kind):
                raise CheckpointError(
                    f"cannot save the layer {path!r} ({kind.__name__}) for its attribute {key!r}: {error}"
                ) from error
    return found


def _named(names: Iterator[str], name_of: Callable[[str, Tensor], str], tensor: Tensor) -> str:
    return name_of(next(names), tensor)


@functools.cache
def _names_in(kind: Any) -> frozenset[str]:
    """The names that the methods of a class use, those of its bases among them."""
    names: set[str] = set()

    def read(code: types.CodeType) -> None:
        names.update(code.co_names)
        for one in code.co_consts:
            if isinstance(one, str):  # getattr(self, "name")
                names.add(one)
            elif isinstance(one, types.CodeType):
                read(one)

    for base in kind.__mro__:
        for member in vars(base).values() if base not in (nn.Module, object) else ():
            function = getattr(member, "fget", None) or inspect.unwrap(getattr(member, "__func__", member))
            if isinstance(getattr(function, "__code__", None), types.CodeType):
                read(function.__code__)
    return frozenset(names)


def _dataclasses(gm: fx.GraphModule) -> dict[fx.Node, dict[str, Any]]:
    """Nodes that make a dataclass of the outputs, with its fields: a file knows no classes and gives dictionaries."""
    found = {}
    for node in gm.graph.nodes:
        kind: Any = node.target
        if node.op != "call_function" or not isinstance(kind, type) or not dataclasses.is_dataclass(kind):
            continue
        if all(user.op == "output" for user in node.users):
            names = [field.name for field in dataclasses.fields(kind)]
            found[node] = {**dict(zip(names, node.args)), **node.kwargs}
    return found


def _node(node: fx.Node, given: dict[fx.Node, dict[str, Any]]) -> dict[str, Any]:
    target: Any = node.target
    try:
        if node.op == "call_function":
            target = function_name(node.target)
        elif node.op == "call_method":
            check_method(node.target)
        return {
            "op": node.op,
            "name": node.name,
            "target": target,
            "args": encode(fx.node.map_arg(node.args, lambda one: given.get(one, one))),
            "kwargs": encode(dict(node.kwargs)),
        }
    except CheckpointError as error:
        raise CheckpointError(f"cannot save node {node.name!r}: {error}") from error


def rebuild(structure: dict[str, Any], tensors: dict[str, Tensor]) -> fx.GraphModule:
    """The graph module of :func:`describe`'s JSON with the given tensors. Executes nothing but constructors."""
    _check_tensors(structure, tensors)
    root = nn.Module()
    tied = structure["tied"]
    made: dict[str, Tensor] = {}

    def tensor(name: str, trainable: bool | None = None) -> Tensor:
        source = tied.get(name, name)
        if source not in tensors:
            raise CheckpointError(f"the weights lack {name!r}: the file is damaged or belongs to another recipe")
        if source not in made:
            value = tensors[source]
            made[source] = nn.Parameter(value, requires_grad=trainable) if trainable is not None else value
        return made[source]

    modules: dict[str, nn.Module] = {}
    for path, entry in structure["layers"].items():
        module: nn.Module = root
        if path:
            check_identifier(path, "layer name")
            kind = layer_class(entry["class"])
            module = kind.__new__(kind)
            nn.Module.__init__(module)
            owner, _, leaf = path.rpartition(".")
            root.get_submodule(owner).add_module(leaf, module)
        modules[path] = module
        prefix = f"{path}." if path else ""
        for key, trainable in entry["parameters"].items():
            check_identifier(key, "parameter")
            none = key in entry["no_parameters"]
            module.register_parameter(key, None if none else tensor(prefix + key, bool(trainable)))  # type: ignore[arg-type]
        for key, persistent in entry["buffers"].items():
            check_identifier(key, "buffer")
            none = key in entry["no_buffers"]
            module.register_buffer(key, None if none else tensor(prefix + key), persistent=bool(persistent))
        for key in entry.get("no_layers", ()):
            check_identifier(key, "layer name")
            module.register_module(key, None)
    for path, entry in structure["layers"].items():
        module = modules[path]
        for key in entry["constants"]:
            _check_attribute_name(path, key)
            object.__setattr__(module, key, tensor(f"{path}.{key}" if path else key))
        for key, value in entry.get("attributes", {}).items():
            _check_attribute_name(path, key)
            object.__setattr__(module, key, decode(value, _no_node, tensor))
    gm = fx.GraphModule(root, _graph(structure["nodes"], root))
    _keep_unread(gm, root)
    return gm.eval()


def _keep_unread(gm: nn.Module, root: nn.Module) -> None:
    """Give a graph module what of ``root`` no node reads: of a model of which the graph is a part, say."""
    for table in ("_parameters", "_buffers", "_modules"):
        for name, value in root.__dict__[table].items():
            gm.__dict__[table].setdefault(name, value)
    gm._non_persistent_buffers_set |= root._non_persistent_buffers_set
    for name, child in root._modules.items():
        mine = gm._modules[name]
        if child is not None and mine is not None and mine is not child:
            _keep_unread(mine, child)


def _check_attribute_name(path: str, key: Any) -> None:
    check_identifier(key, "attribute")
    if key in _PLAIN or hasattr(nn.Module, key):
        raise CheckpointError(f"the recipe sets the attribute {key!r} of {path!r}: the file is not to be trusted")


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
