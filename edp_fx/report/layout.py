"""A layered drawing of a dataflow graph: which column, which order in it, which height, and the lines between.

The steps are those of K. Sugiyama, S. Tagawa and M. Toda, "Methods for Visual Understanding of Hierarchical System
Structures" (IEEE Trans. SMC, 1981): columns by the longest way from an input, orders by the mean place of neighbours,
heights that keep the orders. Columns are then set in rows, as words are in lines.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

GAP = 16  # between nodes of a column, in pixels as all that follows
CHANNEL = 44  # between columns
BETWEEN_ROWS = 40
_LINE = 8  # room that a passing line takes in a column
_TRACK = 7  # between lines that turn to the next row
_SWEEPS = 4
_PAGE = (1000.0, 800.0)  # what the rows should fill best


@dataclass(frozen=True)
class Edge:
    """What goes from node ``source`` to ``target``; lines of one ``via`` are bundled."""

    source: int
    target: int
    via: int


@dataclass(frozen=True)
class Box:
    """Where a node is drawn: its upper left corner and its size."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Layout:
    """A drawing: boxes by node, paths (of SVG) by (source, via), and its size."""

    boxes: dict[int, Box]
    paths: dict[tuple[int, int], str]
    width: float
    height: float


@dataclass(eq=False)
class _Item:
    """A node in its column, or the place where a bundle of lines passes through one."""

    column: int
    width: float
    height: float
    node: int | None = None
    before: list[_Item] = field(default_factory=list)
    after: list[_Item] = field(default_factory=list)
    place: int = 0
    middle: float = 0.0


class Layered:
    """Columns, orders and heights of a graph; :meth:`arranged` sets them in rows.

    Args:
        sizes: (width, height) by node. Nodes are numbered so that most edges lead to greater numbers; the others are
            drawn, and do not count for the columns.
        edges: between nodes of ``sizes``.
    """

    def __init__(self, sizes: Mapping[int, tuple[float, float]], edges: Iterable[Edge]) -> None:
        edges = list(edges)
        column = _columns(sizes, edges)
        self._columns: list[list[_Item]] = [[] for _ in range(max(column.values(), default=-1) + 1)]
        self._items = {node: self._add(column[node], *size, node) for node, size in sorted(sizes.items())}
        # by (source, via) the places that its lines pass, pair by pair
        self._lines: dict[tuple[int, int], dict[tuple[_Item, _Item], None]] = defaultdict(dict)
        self._route(edges)
        self._order()
        self._raise_and_lower()

    def _add(self, column: int, width: float, height: float, node: int | None = None) -> _Item:
        item = _Item(column, width, height, node)
        self._columns[column].append(item)
        return item

    def _route(self, edges: Iterable[Edge]) -> None:
        """Give lines longer than a column places in the columns between; lines of a bundle share them."""
        passing: dict[tuple[int, int, int], _Item] = {}
        joined: set[tuple[_Item, _Item]] = set()
        for edge in sorted(edges, key=lambda one: (one.source, one.via, one.target)):
            bundle = (edge.source, edge.via)
            start, end = self._items[edge.source], self._items[edge.target]
            if start.column > end.column:
                start, end = end, start
            here = start
            for column in range(start.column + 1, end.column):
                key = (*bundle, column)
                if key not in passing:
                    passing[key] = self._add(column, 0, _LINE)
                self._join(bundle, here, passing[key], joined)
                here = passing[key]
            self._join(bundle, here, end, joined)

    def _join(self, bundle: tuple[int, int], one: _Item, other: _Item, joined: set[tuple[_Item, _Item]]) -> None:
        self._lines[bundle][one, other] = None
        if one.column < other.column and (one, other) not in joined:
            joined.add((one, other))
            one.after.append(other)
            other.before.append(one)

    def _order(self) -> None:
        """Order each column by the mean place of its neighbours, to and fro, and keep what crosses least."""
        for items in self._columns:
            _sort(items, lambda item: item.before)
        best, least = [list(items) for items in self._columns], self._crossings()
        for _ in range(_SWEEPS):
            if not least:
                break
            for items in reversed(self._columns):
                _sort(items, lambda item: item.after)
            for items in self._columns:
                _sort(items, lambda item: item.before)
            crossings = self._crossings()
            if crossings < least:
                best, least = [list(items) for items in self._columns], crossings
        self._columns = best
        for items in best:
            for place, item in enumerate(items):
                item.place = place

    def _crossings(self) -> int:
        count = 0
        for items in self._columns:
            seen: list[int] = []
            for item in items:
                ends = sorted(other.place for other in item.after)
                count += sum(len(seen) - bisect_left(seen, end + 1) for end in ends)
                for end in ends:
                    insort(seen, end)
        return count

    def _raise_and_lower(self) -> None:
        """Middles of all items: near those of their neighbours, in order and apart."""
        for items in self._columns:
            _settle(items, lambda item: [])
        for _ in range(_SWEEPS):
            for items in self._columns:
                _settle(items, lambda item: item.before)
            for items in reversed(self._columns):
                _settle(items, lambda item: item.after)
        for items in self._columns:
            _settle(items, lambda item: item.before + item.after)

    # -- in rows ------------------------------------------------------------------------------------------

    def arranged(self, rows: bool) -> Layout:
        """The drawing in one line, or in as many rows as make it largest on a page."""
        best = _Rows(self._columns, self._breaks(1))
        worse, count = 0, 2
        while rows and worse < 3 and count <= len(self._columns):
            other = _Rows(self._columns, self._breaks(count))
            worse = 0 if other.scale > best.scale else worse + 1
            best = max(best, other, key=lambda one: one.scale)
            count += 1
        paths = {bundle: best.path(lines) for bundle, lines in self._lines.items()}
        boxes = {item.node: box for item, box in best.spots.items() if item.node is not None}
        return Layout(boxes, paths, best.width, best.height)

    def _breaks(self, rows: int) -> list[int]:
        """The first columns of the rows, where few lines must turn."""
        if not self._columns:
            return []
        widths = [max(item.width for item in items) + CHANNEL for items in self._columns]
        turning = [len({one for item in items for one in item.before}) for items in self._columns]
        target, starts, left = sum(widths) / rows, [0], 0.0
        for column, width in enumerate(widths):
            if left + width > 1.12 * target and column > starts[-1]:
                window = range(starts[-1] + 1, column + 1)
                full = [one for one in window if sum(widths[starts[-1] : one]) > 0.8 * target]
                start = min(full or [column], key=lambda one: (turning[one], -one))
                starts.append(start)
                left = sum(widths[start:column])
            left += width
        return starts


class _Rows:
    """Columns set in rows that begin at the columns ``starts``."""

    def __init__(self, columns: Sequence[Sequence[_Item]], starts: Sequence[int]) -> None:
        self.spots: dict[_Item, Box] = {}
        self._row_of: dict[_Item, int] = {}
        self._tracks: dict[_Item, int] = {}  # by which an item's lines turn to the next row
        self._tops: list[float] = []
        ranges = list(zip(starts, [*starts[1:], len(columns)]))
        for row, (a, b) in enumerate(ranges):
            self._row_of |= {item: row for column in columns[a:b] for item in column}
        leaving = [self._leaving(columns[a:b]) for a, b in ranges]
        self._left = self._right = 12.0 + _TRACK * max(map(len, leaving), default=0)
        top = 0.0
        for (a, b), turns in zip(ranges, leaving):
            self._tracks |= {item: track for track, item in enumerate(turns)}
            self._tops.append(top)
            top = self._set(columns[a:b], top) + BETWEEN_ROWS + _TRACK * len(turns)
        self.width = self._right + self._left
        self.height = max((box.y + box.height for box in self.spots.values()), default=1.0)
        self.scale = min(_PAGE[0] / self.width, _PAGE[1] / self.height)  # at which all of it is seen

    def _leaving(self, columns: Sequence[Sequence[_Item]]) -> list[_Item]:
        items = [item for column in columns for item in column]
        return [item for item in items if any(self._row_of[one] != self._row_of[item] for one in item.after)]

    def _set(self, columns: Sequence[Sequence[_Item]], top: float) -> float:
        """Put a row at ``top``; gives its lower end."""
        x, shift = self._left, top - min(item.middle - item.height / 2 for column in columns for item in column)
        for column in columns:
            width = max(item.width for item in column)
            for item in column:
                wide = width if item.node is None else item.width
                self.spots[item] = Box(x + (width - wide) / 2, item.middle - item.height / 2 + shift, wide, item.height)
            x += width + CHANNEL
        self._right = max(self._right, x - CHANNEL)
        return max(item.middle + item.height / 2 for column in columns for item in column) + shift

    def path(self, lines: Iterable[tuple[_Item, _Item]]) -> str:
        """The SVG path of a bundle."""
        parts, passed = [], dict[_Item, None]()
        for one, other in lines:
            if one.node is None:
                passed[one] = None
            if self._row_of[one] == self._row_of[other]:
                parts.append(_curve(self.spots[one], self.spots[other]))
            else:
                parts.append(self._turn(one, other))
        for box in map(self.spots.__getitem__, passed):
            parts.append(f"M{box.x:.0f} {_middle(box):.1f}H{box.x + box.width:.0f}")
        return "".join(parts)

    def _turn(self, one: _Item, other: _Item) -> str:
        """Out at the right of a row, back between the rows, in at the left of the next."""
        start, end, aside = self.spots[one], self.spots[other], _TRACK * self._tracks.get(one, 0)
        out, into, back = self._right + 8 + aside, self._left - 8 - aside, self._tops[self._row_of[other]] - 14 - aside
        first, last = (start.x + start.width, _middle(start)), (end.x, _middle(end))
        corners = [(out, first[1]), (out, back), (into, back), (into, last[1])]
        path = f"M{first[0]:.0f} {first[1]:.1f}"
        for before, (x, y), after in zip([first, *corners], corners, [*corners[1:], last]):
            path += f"L{_toward((x, y), before)}Q{x:.0f} {y:.1f} {_toward((x, y), after)}"
        return f"{path}H{last[0]:.0f}"


def _columns(sizes: Mapping[int, tuple[float, float]], edges: Sequence[Edge]) -> dict[int, int]:
    """Each node right of all that it reads; what does not depend on the first node stands just left of its reader."""
    reads: dict[int, list[int]] = defaultdict(list)
    readers: dict[int, list[int]] = defaultdict(list)
    for edge in edges:
        if edge.source < edge.target:
            reads[edge.target].append(edge.source)
            readers[edge.source].append(edge.target)
    nodes = sorted(sizes)
    column: dict[int, int] = {}
    depends = set(nodes[:1])
    for node in nodes:
        column[node] = max((column[one] + 1 for one in reads[node]), default=0)
        if depends.intersection(reads[node]):
            depends.add(node)
    for node in reversed(nodes):
        if node not in depends and readers[node]:
            column[node] = min(column[one] for one in readers[node]) - 1
    return column


def _sort(items: list[_Item], neighbours: Callable[[_Item], list[_Item]]) -> None:
    """By the mean place of neighbours; items without any stay where they are."""
    keys = {}
    for place, item in enumerate(items):
        places = [one.place for one in neighbours(item)]
        keys[item] = sum(places) / len(places) if places else float(place)
    items.sort(key=keys.__getitem__)
    for place, item in enumerate(items):
        item.place = place


def _settle(items: list[_Item], neighbours: Callable[[_Item], list[_Item]]) -> None:
    """Middles as near as may be to the mean of the neighbours', in order and apart: isotonic regression.

    Passing lines pull harder, so that they run straight.
    """
    blocks: list[tuple[float, float, int]] = []  # mean of (wish - offset), weight, items
    offset = 0.0
    offsets = []
    for place, item in enumerate(items):
        if place:
            offset += (items[place - 1].height + item.height) / 2 + GAP
        offsets.append(offset)
        middles = [one.middle for one in neighbours(item)]
        wish = sum(middles) / len(middles) if middles else item.middle
        weight = 4.0 if item.node is None else 1.0
        block = (wish - offset, weight, 1)
        while blocks and blocks[-1][0] > block[0]:
            mean, other, count = blocks.pop()
            whole = other + block[1]
            block = ((mean * other + block[0] * block[1]) / whole, whole, count + block[2])
        blocks.append(block)
    means = [mean for mean, _, count in blocks for _ in range(count)]
    for item, mean, one in zip(items, means, offsets):
        item.middle = mean + one


def _middle(box: Box) -> float:
    return box.y + box.height / 2


def _curve(one: Box, other: Box) -> str:
    """From the right of one to the left of the other."""
    x, y, end_x, end_y = one.x + one.width, _middle(one), other.x, _middle(other)
    if abs(y - end_y) < 0.5:
        return f"M{x:.0f} {y:.1f}H{end_x:.0f}"
    half = (x + end_x) / 2
    return f"M{x:.0f} {y:.1f}C{half:.0f} {y:.1f} {half:.0f} {end_y:.1f} {end_x:.0f} {end_y:.1f}"


def _toward(corner: tuple[float, float], other: tuple[float, float]) -> str:
    """The point six pixels from a corner on the way to another, along an axis."""
    x, y = corner
    if abs(other[1] - y) < 0.5:
        return f"{x + (6 if other[0] > x else -6):.0f} {y:.1f}"
    return f"{x:.0f} {y + (6 if other[1] > y else -6):.1f}"
