"""What runs in the place of a part's own forward: its region of the joint graph."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import fx, nn

from edp_fx.errors import TraceError
from edp_fx.parts.plan import PartCall
from edp_fx.parts.recording import Form

Tables = tuple[Mapping[str, Any], ...]


class PartForward:
    """Takes and gives what the part's own forward did, in the same containers.

    A part that is called in several ways has a region for each; those of one form differ in nothing but the sizes they
    were traced at. In a copy of the model it runs the copy's modules, as the graph was when the copy was made.

    Args:
        path: of the part.
        root: the model.
        calls: the part's calls in the joint graph, by number.
    """

    def __init__(self, path: str, root: nn.Module, calls: Mapping[int, PartCall]) -> None:
        self.path = path
        self._tables: Tables = (root._modules, root._parameters, root._buffers)
        self._forms = [(number, one.given, one.gave, one.shapes) for number, one in calls.items()]
        self._cut: Callable[[int], fx.Graph] | None = None
        self._regions: dict[int, fx.Graph] = {}
        self._compiled: dict[int, Any] = {}

    def renew(self, cut: Callable[[int], fx.Graph]) -> None:
        """Run from now on what ``cut`` gives as the region of a call, by its number."""
        self._cut, self._regions, self._compiled = cut, {}, {}

    def _region(self, number: int) -> fx.Graph:
        if number not in self._regions:
            assert self._cut is not None
            self._regions[number] = self._cut(number)
        return self._regions[number]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        form, tensors = Form.of((args, kwargs))
        shapes = [tuple(tensor.shape) for tensor in tensors]
        fitting = [(number, gave, known) for number, given, gave, known in self._forms if given == form]
        if not fitting:
            raise TraceError(
                f"the part {self.path} is called in another way than when it was traced; give trace_parts arguments "
                "that make the model call it so, too"
            )
        number, gave, _ = next((one for one in fitting if _sizes(one[2]) == _sizes(shapes)), fitting[0])
        return gave.filled(self._function(number)(self, *tensors))

    def _function(self, number: int) -> Any:
        if number not in self._compiled:
            code = self._region(number).python_code("self")
            names = dict(code.globals)
            exec(compile(code.src, f"<part {self.path}>", "exec"), names)
            self._compiled[number] = names["forward"]
        return self._compiled[number]

    def __getattr__(self, name: str) -> Any:
        """What the model has by this name: the code of a region names its modules from the model down."""
        for table in self.__dict__.get("_tables", ()):
            if name in table:
                return table[name]
        raise AttributeError(f"part {self.__dict__.get('path')!r} finds no {name!r} in the model")

    def __deepcopy__(self, memo: dict[int, Any]) -> PartForward:
        made = object.__new__(PartForward)
        memo[id(self)] = made
        made.__dict__.update(self.__dict__)
        made._tables = copy.deepcopy(self._tables, memo)
        made._regions = {number: self._region(number) for number, *_ in self._forms}
        made._cut, made._compiled = None, dict(self._compiled)
        return made

    def __reduce__(self) -> Any:
        raise TraceError(
            "a model with traced parts cannot be pickled: save parts.graph by edp_fx.save, or the model's state_dict"
        )


def _sizes(shapes: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Without the batch."""
    return [shape[1:] for shape in shapes]
