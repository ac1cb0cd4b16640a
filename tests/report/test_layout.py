"""The drawing of a graph: columns from left to right, nothing on top of anything, lines from node to node."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from edp_fx.report.layout import BETWEEN_ROWS, Box, Edge, Layered

SIZE = (60.0, 40.0)


def at_random(seed: int) -> tuple[dict[int, tuple[float, float]], list[Edge]]:
    """A graph with shortcuts, side branches and constants that are read late."""
    dice = random.Random(seed)
    edges = {Edge(k - 1, k, k - 1) for k in range(1, 40)}
    edges |= {Edge(dice.randrange(k), k, dice.randrange(3)) for k in range(2, 40) for _ in range(dice.randrange(3))}
    edges |= {Edge(40 + k, dice.randrange(5, 40), 40 + k) for k in range(5)}
    return {k: (dice.uniform(30, 120), dice.choice([30, 42])) for k in range(45)}, sorted(edges, key=str)


def apart(one: Box, other: Box) -> bool:
    return (
        one.x + one.width <= other.x
        or other.x + other.width <= one.x
        or one.y + one.height <= other.y
        or other.y + other.height <= one.y
    )


@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_nothing_lies_on_anything_and_all_lies_inside(seed: int, rows: bool) -> None:
    sizes, edges = at_random(seed)
    placed = Layered(sizes, edges).arranged(rows)
    assert placed.boxes.keys() == sizes.keys()
    for box, size in ((placed.boxes[k], sizes[k]) for k in sizes):
        assert (box.width, box.height) == size
        assert box.x >= 0 and box.x + box.width <= placed.width
        assert box.y >= 0 and box.y + box.height <= placed.height
    assert all(apart(one, other) for one, other in itertools.combinations(placed.boxes.values(), 2))


@pytest.mark.parametrize("seed", range(5))
def test_in_one_line_all_is_read_from_left_to_right(seed: int) -> None:
    sizes, edges = at_random(seed)
    placed = Layered(sizes, edges).arranged(rows=False)
    for edge in edges:
        source, target = placed.boxes[edge.source], placed.boxes[edge.target]
        assert (source.x + source.width < target.x) == (edge.source < edge.target or edge.source >= 40)


@pytest.mark.parametrize("rows", [True, False])
def test_a_line_begins_at_its_node_and_ends_at_those_that_read_it(rows: bool) -> None:
    sizes, edges = at_random(0)
    placed = Layered(sizes, edges).arranged(rows)
    assert placed.paths.keys() == {(edge.source, edge.via) for edge in edges}
    for (node, via), path in placed.paths.items():
        points = {(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path)}
        heights = {y for _, y in points}
        for k in (node, *(edge.target for edge in edges if (edge.source, edge.via) == (node, via))):
            box = placed.boxes[k]
            assert any(abs(y - (box.y + box.height / 2)) < 0.1 for y in heights), (node, k)


def test_a_long_chain_fills_a_page_in_rows() -> None:
    sizes = dict.fromkeys(range(120), SIZE)
    placed = Layered(sizes, [Edge(k, k + 1, k) for k in range(119)]).arranged(rows=True)
    assert 0.8 < placed.width / placed.height < 2
    rows = sorted({box.y for box in placed.boxes.values()})
    assert len(rows) > 5
    assert all(other - one >= SIZE[1] + BETWEEN_ROWS for one, other in itertools.pairwise(rows))


def test_no_lines_cross_that_need_not() -> None:
    # two chains side by side, listed so that their nodes alternate the wrong way round
    edges = [Edge(0, 1, 0), Edge(0, 2, 0), Edge(1, 4, 1), Edge(2, 3, 2), Edge(3, 5, 3), Edge(4, 6, 4)]
    boxes = Layered(dict.fromkeys(range(7), SIZE), edges).arranged(rows=False).boxes
    assert len({boxes[a].y < boxes[b].y for a, b in ((1, 2), (4, 3), (6, 5))}) == 1


def test_a_constant_stands_next_to_its_reader() -> None:
    edges = [
        *(Edge(k, k + 1, k) for k in range(9)),
        Edge(10, 11, 10),
        Edge(11, 12, 11),
        Edge(12, 13, 12),
        Edge(9, 13, 9),
    ]
    boxes = Layered(dict.fromkeys(range(14), SIZE), edges).arranged(rows=False).boxes
    assert boxes[12].x == boxes[9].x and boxes[11].x == boxes[8].x and boxes[10].x == boxes[7].x


def test_one_node_and_none() -> None:
    assert Layered({3: SIZE}, []).arranged(rows=True).boxes.keys() == {3}
    assert Layered({}, []).arranged(rows=True).boxes == {}
