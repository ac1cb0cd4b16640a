"""What may vary at run time: the batch and, if asked, the image size; each as least, usual and greatest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edp_fx.errors import LoweringError


@dataclass(frozen=True)
class Range:
    """A size with its least, usual and greatest value; static where all three are one."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise LoweringError(f"a size range needs 1 <= min <= opt <= max, got {self}")

    def __str__(self) -> str:
        return str(self.min) if self.static else f"{self.min}:{self.opt}:{self.max}"

    @property
    def static(self) -> bool:
        """True where the size cannot vary."""
        return self.min == self.max

    @staticmethod
    def of(value: int | str | tuple[int, int, int] | Range) -> Range:
        """``8`` is static, ``(1, 8, 32)`` and ``"1:8:32"`` vary. Raises LoweringError on anything else."""
        if isinstance(value, Range):
            return value
        try:
            parts = [int(p) for p in value.split(":")] if isinstance(value, str) else value
            numbers = (parts,) * 3 if isinstance(parts, int) else tuple(parts)
            if len(numbers) == 1:
                numbers *= 3
            low, usual, high = numbers
        except (TypeError, ValueError):
            raise LoweringError(f"{value!r} is no size range: give N or MIN:OPT:MAX") from None
        return Range(low, usual, high)

    def samples(self, count: int = 3) -> list[int]:
        """Up to ``count`` small sizes inside the range, the least first: what a check on a CPU can afford."""
        wanted = [self.min, self.min + 1, self.min + 4]
        return sorted({min(size, self.max) for size in wanted[:count]})


@dataclass(frozen=True)
class Profile:
    """Which axes of the inputs vary. Axis 0 of every input as long as the first one's is the batch; axes 2
    and 3 of every 4-d input are the image when ``image`` is given.
    """

    batch: Range
    image: Range | None = None

    def axes(self, inputs: tuple[Tensor, ...]) -> list[dict[int, tuple[str, Range]]]:
        """For each input: axis -> (name of the size, its range), static sizes included."""
        rows = inputs[0].shape[0] if inputs and inputs[0].dim() else 0
        table: list[dict[int, tuple[str, Range]]] = []
        for tensor in inputs:
            axes: dict[int, tuple[str, Range]] = {}
            if tensor.dim() and tensor.shape[0] == rows:
                axes[0] = ("batch", self.batch)
            if self.image is not None and tensor.dim() == 4:
                axes[2], axes[3] = ("height", self.image), ("width", self.image)
            table.append(axes)
        return table

    def shapes(self, inputs: tuple[Tensor, ...]) -> list[tuple[tuple[int, ...], ...]]:
        """For each input its least, usual and greatest shape."""
        result = []
        for tensor, axes in zip(inputs, self.axes(inputs)):
            sized = [list(tensor.shape) for _ in range(3)]
            for axis, (_, size) in axes.items():
                for shape, value in zip(sized, (size.min, size.opt, size.max)):
                    shape[axis] = value
            result.append(tuple(tuple(shape) for shape in sized))
        return result

    def sample(self, inputs: tuple[Tensor, ...], batch: int, image: int | None, seed: int) -> tuple[Tensor, ...]:
        """Random inputs like the examples at another size: normal where they are floating, their rows
        repeated where they are integers (an index must stay valid).
        """
        generator = torch.Generator().manual_seed(seed)
        made = []
        for tensor, axes in zip(inputs, self.axes(inputs)):
            shape = list(tensor.shape)
            for axis, (name, _) in axes.items():
                if name == "batch":
                    shape[axis] = batch
                elif image is not None:
                    shape[axis] = image
            if tensor.is_floating_point():
                made.append(torch.randn(shape, generator=generator).to(tensor.dtype))
            else:
                repeats = [-(-want // have) for want, have in zip(shape, tensor.shape)]
                made.append(tensor.repeat(repeats)[tuple(slice(0, want) for want in shape)])
        return tuple(made)
