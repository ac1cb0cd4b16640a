"""Puts the source of a network together: classes with the lines of ``__init__`` and ``forward``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random


@dataclass(frozen=True)
class Feature:
    """A feature map [batch, channels, height, width] held by a variable of ``forward``."""

    name: str
    c: int
    h: int
    w: int


@dataclass
class Source:
    """What is written at the top level; shared by all classes of a program."""

    rng: Random
    definitions: list[str] = field(default_factory=list)
    count: int = 0

    def fresh(self, kind: str) -> str:
        """A name that nothing has yet."""
        self.count += 1
        return f"{kind}{self.count}"

    def define(self, text: str) -> None:
        """Put a class or function at the top level, once."""
        text = text.strip("\n")
        if text not in self.definitions:
            self.definitions.append(text)


class Scope:
    """One ``nn.Module`` class being written.

    Attributes:
        c, h, w: the shape of the feature ``x`` the block was given.
        skips: features made earlier in the program.
        style: name and length of a vector input [batch, length], where the program takes one.
    """

    def __init__(self, source: Source, x: Feature, skips: list[Feature], style: tuple[str, int] | None) -> None:
        self.source, self.skips, self.style = source, skips, style
        self.x, self.c, self.h, self.w = x.name, x.c, x.h, x.w
        self.init: list[str] = []
        self.body: list[str] = []
        self.arguments: list[str] = []
        self.own = False  # whether this is a class of its own, which earlier features are handed to

    @property
    def rng(self) -> Random:
        """Where every choice comes from."""
        return self.source.rng

    def pick(self, *choices: object) -> str:
        """One of the choices, as text."""
        return str(self.rng.choice(choices))

    def number(self, *choices: int) -> int:
        """One of the numbers."""
        return self.rng.choice(choices)

    def chance(self, share: float) -> bool:
        """True in ``share`` of the cases."""
        return self.rng.random() < share

    def channels(self, multiple: int = 2) -> int:
        """A number of channels."""
        return self.rng.choice([n for n in (4, 6, 8, 12, 16) if n % multiple == 0])

    def divisor(self, number: int) -> int:
        """One of a number's divisors."""
        return self.rng.choice([n for n in range(1, number + 1) if number % n == 0])

    def module(self, expression: str, kind: str = "layer") -> str:
        """``self.NAME`` of a new submodule."""
        name = f"self.{self.source.fresh(kind)}"
        self.init.append(f"{name} = {expression}")
        return name

    def parameter(self, *shape: int, scale: float = 0.3) -> str:
        """``self.NAME`` of a new parameter."""
        sizes = ", ".join(map(str, shape))
        return self.module(f"nn.Parameter(torch.randn({sizes}) * {scale})", "p")

    def buffer(self, expression: str) -> str:
        """``self.NAME`` of a new buffer."""
        name = self.source.fresh("buf")
        self.init.append(f'self.register_buffer("{name}", {expression})')
        return f"self.{name}"

    def say(self, *lines: str) -> None:
        """Lines of ``forward``."""
        self.body += lines

    def let(self, expression: str) -> str:
        """A new variable of ``forward``."""
        name = self.source.fresh("v")
        self.body.append(f"{name} = {expression}")
        return name

    def use(self, name: str) -> str:
        """A variable of the whole program, handed to this class where it is one of its own."""
        if self.own and name not in self.arguments:
            self.arguments.append(name)
        return name

    def feature(self, expression: str, c: int, h: int | None = None, w: int | None = None) -> Feature:
        """What a block gives: an expression and its shape; height and width stay where they are not given."""
        return Feature(self.let(expression), c, self.h if h is None else h, self.w if w is None else w)

    def class_text(self, name: str, arguments: list[str], result: str) -> str:
        """The class as source."""
        lines = [f"class {name}(nn.Module):", "    def __init__(self):", "        super().__init__()"]
        lines += [f"        {line}" for line in self.init]
        lines += [f"    def forward(self, {', '.join(arguments)}):"]
        lines += [f"        {line}" for line in self.body]
        lines += [f"        return {result}"]
        return "\n".join(lines)


Block = Callable[[Scope], Feature]
BLOCKS: dict[str, Block] = {}


def block(function: Block) -> Block:
    """Enter a block under its function's name."""
    BLOCKS[function.__name__] = function
    return function
