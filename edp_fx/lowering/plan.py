"""The builder's own account of a plan, read from its verbose log: fused layers and memory."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

_FIELD = re.compile(r"(Name|LayerType|Inputs|Constants|Outputs|TacticName|StreamId|Metadata): ")
_TENSOR = re.compile(r"Dimensions: \[([^\]]*)\].*?Datatype: (\w+)")
_SOURCE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_MEMORY = re.compile(r"Total (Weights|Activation) Memory: (\d+) bytes")

# A kernel the compiler generates for what no library kernel covers: reshuffles, padding, left-over
# arithmetic.
GENERATED = "kgen"


@dataclass(frozen=True)
class PlanLayer:
    """One layer of the fused plan: shapes and types as ``"-1,64,56,56 Half"``, the ONNX nodes it came
    from.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What a build made. Memory is in bytes, None where the builder did not say."""

    layers: tuple[PlanLayer, ...]
    weights_memory: int | None
    activation_memory: int | None

    @property
    def generated_kernels(self) -> int:
        """How many layers are generated kernels: unaligned widths make more of them."""
        return self.kinds().get(GENERATED, 0)

    def kinds(self) -> dict[str, int]:
        """Layer kind -> count."""
        return dict(Counter(layer.kind for layer in self.layers))

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "generated_kernels": self.generated_kernels, "kinds": self.kinds()}


def parse_plan(messages: Iterable[str]) -> Plan:
    """Read the ``Layers:`` table and the memory totals of a log at verbosity DETAILED; missing parts stay
    empty.
    """
    layers: list[PlanLayer] = []
    memory: dict[str, int] = {}
    for message in messages:
        for what, size in _MEMORY.findall(message):
            memory[what] = int(size)
        if message.lstrip().startswith("Layers:"):
            layers = [
                _layer(line) for line in message.splitlines() if line.startswith("Name: ") and "LayerType: " in line
            ]
    return Plan(tuple(layers), memory.get("Weights"), memory.get("Activation"))


def inspected_layers(text: str) -> tuple[PlanLayer, ...]:
    """The same from the JSON of TensorRT's engine inspector; an engine built without detail has bare
    names.
    """
    layers = []
    for entry in json.loads(text).get("Layers", []):
        entry = entry if isinstance(entry, dict) else {"Name": str(entry)}

        def tensors(key: str, entry: dict[str, Any] = entry) -> tuple[str, ...]:
            found = entry.get(key) or []
            tables = [one for one in found if isinstance(one, dict)]
            shapes = [",".join(map(str, one.get("Dimensions", []))) for one in tables]
            dtypes = [one.get("Datatype") or one.get("Format/Datatype", "") for one in tables]
            return tuple(f"{shape} {dtype}" for shape, dtype in zip(shapes, dtypes))

        sources = tuple(_SOURCE.findall(str(entry.get("Metadata", ""))))
        kind = str(entry.get("LayerType", ""))
        layers.append(PlanLayer(str(entry.get("Name", "")), kind, tensors("Inputs"), tensors("Outputs"), sources))
    return tuple(layers)


def _layer(line: str) -> PlanLayer:
    # Only the outermost keys count: "Name: " also occurs within the tensors' braces.
    parts: dict[str, str] = {}
    depth, key, start = 0, "", 0
    for match in _FIELD.finditer(line):
        depth += line.count("{", start, match.start()) - line.count("}", start, match.start())
        if key:
            parts[key] = parts.get(key, "") + line[start : match.start()]
        start = match.start()
        if depth == 0:
            key, start = match[1], match.end()
    parts[key] = parts.get(key, "") + line[start:]

    def tensors(text: str) -> tuple[str, ...]:
        return tuple(f"{shape} {dtype}" for shape, dtype in _TENSOR.findall(text))

    return PlanLayer(
        name=parts.get("Name", "").strip(" ,"),
        kind=parts.get("LayerType", "").strip(" ,"),
        inputs=tensors(parts.get("Inputs", "")),
        outputs=tensors(parts.get("Outputs", "")),
        sources=tuple(_SOURCE.findall(parts.get("Metadata", ""))),
    )
