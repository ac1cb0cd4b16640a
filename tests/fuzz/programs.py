"""Programs: a plan (which blocks, with which seeds) and the source that it stands for.

A block draws from a seed of its own, so a plan stays meaningful when blocks are left out of it: that is how a failing
program is made small.
"""

from __future__ import annotations

import linecache
import sys
import types
from dataclasses import dataclass, replace
from random import Random
from typing import Any
from zlib import crc32

from torch import nn

from tests.fuzz.blocks import BLOCKS
from tests.fuzz.writer import Feature, Scope, Source

HEADER = """\
import math
from dataclasses import dataclass
from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
"""
INPUTS = ("image", "image", "image", "image", "two images", "image and style")
SHAPES = {"image": ((3, 8, 8),), "two images": ((3, 8, 8), (3, 8, 8)), "image and style": ((3, 8, 8), (5,))}
ENDINGS = ("tensor", "tensor", "tensor", "features", "tuple", "dict", "dataclass", "list", "namedtuple", "nested")


@dataclass(frozen=True)
class Plan:
    """What a program is made of.

    Attributes:
        seed: of the stem and the head.
        inputs: key of ``SHAPES``.
        ending: what ``forward`` returns.
        blocks: names and seeds.
    """

    seed: int
    inputs: str
    ending: str
    blocks: tuple[tuple[str, int], ...]

    def without(self, gone: set[int]) -> Plan:
        """The plan less some blocks."""
        return replace(self, blocks=tuple(one for i, one in enumerate(self.blocks) if i not in gone))


@dataclass(frozen=True)
class Program:
    """A network as source.

    Attributes:
        name: for file names in tracebacks.
        source: a module that defines ``Net``.
        shapes: of the inputs, without the batch.
    """

    name: str
    source: str
    shapes: tuple[tuple[int, ...], ...]

    def build(self) -> nn.Module:
        """Run the source in a module of its own and make the network."""
        module = types.ModuleType(self.name)
        path = f"<{self.name}>"
        linecache.cache[path] = (len(self.source), None, self.source.splitlines(keepends=True), path)
        sys.modules[self.name] = module  # dataclasses and torch.jit look classes up there
        exec(compile(self.source, path, "exec"), module.__dict__)
        return module.__dict__["Net"]()


def plan(seed: int) -> Plan:
    """The plan of a seed: the same on every machine."""
    rng = Random(seed)
    names = sorted(BLOCKS)
    count = rng.choice((2, 3, 3, 4, 4, 5, 6))
    blocks = tuple((rng.choice(names), rng.randrange(1 << 30)) for _ in range(count))
    return Plan(rng.randrange(1 << 30), rng.choice(INPUTS), rng.choice(ENDINGS), blocks)


def programs() -> Any:
    """A hypothesis strategy over plans; shrinks to few blocks and small seeds."""
    from hypothesis import strategies as st

    seeds = st.integers(0, (1 << 30) - 1)
    blocks = st.lists(st.tuples(st.sampled_from(sorted(BLOCKS)), seeds), max_size=6).map(tuple)
    return st.builds(Plan, seeds, st.sampled_from(sorted(set(INPUTS))), st.sampled_from(ENDINGS), blocks)


def write(plan: Plan) -> Program:
    """The source of a plan."""
    source = Source(Random(plan.seed))
    shapes = SHAPES[plan.inputs]
    style = ("style", shapes[1][0]) if plan.inputs == "image and style" else None
    net = Scope(source, Feature("image", *shapes[0]), [], style)
    x, skips = _stem(net, plan.inputs)
    for name, seed in plan.blocks:
        source.rng = Random(seed)
        skips.append(x)
        x = _placed(net, name, x, skips, style)
    source.rng = Random(plan.seed + 1)
    result = _head(net, x, skips, plan.ending)
    arguments = ["image", *(["other"] if plan.inputs == "two images" else []), *(["style"] if style else [])]
    text = net.class_text("Net", arguments, result)
    parts = [HEADER, *source.definitions, text]
    return Program(f"fuzz_program_{crc32(repr(plan).encode()):08x}", "\n\n".join(parts) + "\n", shapes)


def _stem(net: Scope, inputs: str) -> tuple[Feature, list[Feature]]:
    out = net.channels()
    stem = net.module(f"nn.Conv2d(3, {out}, 3, padding=1)", "stem")
    x = Feature(net.let(f"F.relu({stem}(image))"), out, 8, 8)
    skips: list[Feature] = []
    if inputs == "two images":
        stem = stem if net.chance(0.4) else net.module(f"nn.Conv2d(3, {out}, 3, padding=1)", "stem")
        skips.append(Feature(net.let(f"{stem}(other)"), out, 8, 8))
        if net.chance(0.5):
            x = Feature(net.let(f"{x.name} * torch.sigmoid({skips[0].name})"), out, 8, 8)
    return x, skips


def _placed(net: Scope, name: str, x: Feature, skips: list[Feature], style: tuple[str, int] | None) -> Feature:
    """Write a block into the network's own ``forward``, or into a class of its own."""
    if net.chance(0.5):
        inner = Scope(net.source, x, skips, style)
        inner.init, inner.body = net.init, net.body
        return BLOCKS[name](inner)
    inner = Scope(net.source, replace(x, name="x"), skips[:-1], style)
    inner.own = True
    made = BLOCKS[name](inner)
    title = net.source.fresh("".join(part.title() for part in name.split("_")))
    net.source.definitions.append(inner.class_text(title, ["x", *inner.arguments], made.name))
    layer = net.module(f"{title}()", "block")
    return replace(made, name=net.let(f"{layer}({', '.join([x.name, *inner.arguments])})"))


def _head(net: Scope, x: Feature, skips: list[Feature], ending: str) -> str:
    if ending == "features":
        return x.name
    if net.chance(0.2):
        fc = net.module(f"nn.Linear({x.c * x.h * x.w}, 4)", "head")
        logits = net.let(f"{fc}({net.pick(f'{x.name}.flatten(1)', f'{x.name}.reshape({x.name}.size(0), -1)')})")
    else:
        fc = net.module(f"nn.Linear({x.c}, 4)", "head")
        pooled = net.pick(
            f"{x.name}.mean((2, 3))", f"F.adaptive_avg_pool2d({x.name}, 1).flatten(1)",
            f"{x.name}.flatten(2).mean(-1)", f"{x.name}.amax((-2, -1))",
        )  # fmt: skip
        logits = net.let(f"{fc}({pooled})")
    other = net.rng.choice([x, *skips]).name
    if ending == "dataclass":
        net.source.define(
            "@dataclass\nclass Output:\n    logits: torch.Tensor\n    features: Optional[torch.Tensor] = None"
        )
    if ending == "namedtuple":
        net.source.define("class Named(NamedTuple):\n    logits: torch.Tensor\n    features: torch.Tensor")
    return {
        "tensor": logits,
        "tuple": f"({logits}, {other})",
        "list": f"[{other}, {logits}]",
        "dict": f"{{'logits': {logits}, 'features': {other}}}",
        "dataclass": f"Output({logits}, {other})",
        "namedtuple": f"Named({logits}, {other})",
        "nested": f"({logits}, {{'more': [{other}, None]}})",
    }[ending]
