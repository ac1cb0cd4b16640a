"""Pure arithmetic of the choice: flat index, prices, hull, schedule, budget."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import edp_fx
from edp_fx.compressor.budget import Budget, check_reachable
from edp_fx.compressor.elements import Elements
from edp_fx.compressor.kinds.base import Applied
from edp_fx.compressor.method import Method
from edp_fx.compressor.prices import Prices
from edp_fx.compressor.removals import hull_prices
from edp_fx.compressor.selection import Selector
from edp_fx.cost import CostModel
from edp_fx.errors import BudgetError
from edp_fx.inputs import randomize_


def group(number: int, size: int, members: Any, kind: str = "channel") -> Any:
    return SimpleNamespace(id=number, size=size, kind=kind, members=members)


def member(parameter: Any, axis: Any, owner: Any, role: Any) -> Any:
    return SimpleNamespace(parameter=parameter, axis=axis, owner=np.array(owner, dtype=np.int32), role=role)


def two_groups() -> Elements:
    first = group(
        7,
        2,
        [
            member("a.weight", 0, [0, 0, 1, 1], "producer"),
            member("b.weight", 1, [0, 1, -1], "consumer"),
            member("norm.running_mean", 0, [0, 0, 1, 1], "affine"),
        ],
    )
    second = group(9, 1, [member("b.weight", 1, [-1, -1, 0], "consumer")])
    return Elements([first, second], ["a.weight", "b.weight"])


def test_elements_of_several_groups_share_one_axis_index() -> None:
    elements = two_groups()
    assert elements.n == 3
    sites = {(site.parameter, site.axis): site.index.tolist() for site in elements.sites}
    assert sites == {("a.weight", 0): [0, 0, 1, 1], ("b.weight", 1): [0, 1, 2]}
    assert [site.parameter for site in elements.gates] == ["b.weight"]


def test_sums_and_scales_go_to_the_owning_elements() -> None:
    elements = two_groups()
    weight = torch.arange(12.0).view(4, 3)
    site = next(site for site in elements.sites if site.parameter == "a.weight")
    total = elements.sums([(site, site.line(weight))], weight.device)
    assert total.tolist() == [15.0, 51.0, 0.0, 0.0]
    elements.scale(site, weight, torch.tensor([0.0, 2.0, 5.0, 1.0]))
    assert weight[:2].eq(0).all()
    assert weight[2].tolist() == [12.0, 14.0, 16.0]


def test_elements_are_found_again_after_pruning() -> None:
    before = two_groups()
    after = Elements(
        [
            group(0, 1, [member("b.weight", 1, [-1, 0], "consumer")]),
            group(
                1,
                1,
                [member("a.weight", 0, [0, 0], "producer"), member("b.weight", 1, [0, -1], "consumer")],
            ),
        ],
        ["a.weight", "b.weight"],
    )
    kept = {"a.weight": {0: np.array([2, 3])}, "b.weight": {1: np.array([1, 2])}}
    assert before.carried(after, Applied(kept=kept)).tolist() == [2, 1]


def test_hull_prices_first_removals_that_save_nothing_with_those_that_pay() -> None:
    prices = hull_prices(np.array([1.0, 2.0, 3.0, 9.0]), np.array([0.0, 0.0, 3.0, 4.0]))
    assert prices.tolist() == [1.0, 1.0, 1.0, 6.0]
    assert np.isinf(hull_prices(np.array([1.0, 2.0]), np.zeros(2))).all()


@pytest.mark.parametrize("total", [2, 7, 60, 200, 5000])
def test_schedule_decides_shrinks_and_ends_within_the_run(total: int) -> None:
    schedule = Method().schedule(total)
    decisions = [step for step in range(total + 1) if schedule.decides(step)]
    assert decisions[-1] == schedule.last
    assert schedule.progress(schedule.last) == 1.0
    assert schedule.gate(schedule.fade) == 0.0
    assert schedule.last + schedule.fade == schedule.stop
    progress = [schedule.progress(step) for step in decisions]
    assert progress == sorted(progress)
    assert schedule.stop <= max(total, 3)
    assert schedule.removes_at(schedule.stop)


@pytest.mark.parametrize("values", [{}, {"macs": 0.4, "params": 0.3}, {"macs": 0.0}, {"macs": float("nan")}])
def test_malformed_budgets_are_refused(values: Any) -> None:
    with pytest.raises(BudgetError):
        Budget(**values)


def test_budget_is_a_share_or_an_amount() -> None:
    assert Budget(macs=0.4).target(1000) == 400
    assert Budget(params=250).target(1000) == 250
    with pytest.raises(BudgetError, match=r"least that can is 0.5"):
        check_reachable(Budget(macs=0.4), 1000, 500, 400)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.left = nn.Conv2d(8, 12, 3, padding=1)
        self.right = nn.Conv2d(8, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(torch.relu(self.left(x) + self.right(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def priced() -> Any:
    model = Net()
    randomize_(model)
    inputs = (torch.randn(2, 3, 8, 8),)
    gm = edp_fx.insert(edp_fx.trace(model, inputs))
    graph = edp_fx.analyze(gm, inputs)
    cost = CostModel(gm, graph)
    elements = Elements([one for one in graph.groups if one.prunable], dict(gm.named_parameters()))
    return cost, elements, Prices(cost, elements)


def test_prices_agree_with_the_cost_model(priced: Any) -> None:
    cost, elements, prices = priced
    rng = np.random.default_rng(0)
    for share in (0.3, 0.6, 0.9, 1.0):
        alive = rng.random(elements.n) < share
        alive[elements.offsets[:-1]] = True
        assert prices.total(alive) == pytest.approx(cost.total(elements.split(alive)), rel=1e-12)
        for number, one in enumerate(elements.groups):
            start, stop = elements.offsets[number], elements.offsets[number + 1]
            if one.kind != "rank" or alive[start:stop].sum() < 2:
                continue
            saved = prices.savings(alive).of_ranks(number, int(alive[start:stop].sum()) - 1)
            fewer = alive.copy()
            for index, element in enumerate(start + np.flatnonzero(alive[start:stop])[:-1]):
                fewer[element] = False
                expected = prices.total(alive) - prices.total(fewer)
                assert saved[index] == pytest.approx(expected, abs=1e-6 * cost.dense)


def test_marginal_is_the_cost_of_one_element(priced: Any) -> None:
    _, elements, prices = priced
    alive = np.ones(elements.n, dtype=bool)
    marginal = prices.savings(alive).marginal
    for number, start in enumerate(elements.offsets[:-1]):
        fewer = alive.copy()
        fewer[start] = False
        assert marginal[number] == pytest.approx(prices.total(alive) - prices.total(fewer))


@pytest.mark.parametrize("share", [0.8, 0.5, 0.25])
def test_choice_meets_the_target_keeps_the_floors_and_the_important(priced: Any, share: float) -> None:
    _, elements, prices = priced
    floors = np.maximum(1, elements.sizes // 8)
    selector = Selector(elements, prices, floors)
    rng = np.random.default_rng(1)
    importance = rng.random(elements.n)
    everything = np.ones(elements.n, dtype=bool)
    target = share * prices.total(everything)
    left = selector.choose(everything, importance, target, fill_from=everything, rounds=4)
    assert 0.9 * target <= prices.total(left) <= target  # so small a network has coarse steps
    kept = np.add.reduceat(left, elements.offsets[:-1])
    assert (kept >= floors).all()
    assert importance[left].mean() > importance[~left].mean()


def test_unreachable_target_stops_at_the_floors(priced: Any) -> None:
    _, elements, prices = priced
    selector = Selector(elements, prices, np.ones(len(elements.groups), dtype=np.int64))
    left = selector.choose(np.ones(elements.n, dtype=bool), np.ones(elements.n), 1.0, rounds=8)
    assert prices.total(left) <= 1.05 * selector.least()


class Each:
    """Every element costs 1, and saves what its group's entry says."""

    def __init__(self, saved: Any) -> None:
        self.saved = np.array(saved, dtype=float)

    def total(self, alive: Any, as_two: Any = None) -> float:
        return float(alive.sum())

    def as_two(self, alive: Any) -> Any:
        return np.zeros(0, dtype=bool)

    def savings(self, alive: Any) -> Any:
        return SimpleNamespace(marginal=self.saved)


def test_what_saves_cost_but_no_work_goes_last_and_does_go() -> None:
    elements = Elements([group(0, 4, []), group(1, 4, [])], [])
    importance = np.array([0.1, 0.2, 0.3, 0.4, 5.0, 6.0, 7.0, 8.0])
    selector = Selector(elements, Each([1, 1]), np.ones(2, dtype=np.int64), Each([0, 1]))
    everything = np.ones(8, dtype=bool)
    assert selector.choose(everything, importance, 6.0).tolist() == [True] * 4 + [False] * 2 + [True] * 2
    assert selector.choose(everything, importance, 3.0).tolist() == [False] * 2 + [True] * 2 + [False] * 3 + [True]


class Own:
    """Elements of costs of their own."""

    def __init__(self, *costs: Any) -> None:
        self.costs = np.array(costs)

    def total(self, alive: Any, as_two: Any = None) -> float:
        return float((self.costs * alive).sum())

    def savings(self, alive: Any) -> Any:
        return SimpleNamespace(marginal=self.costs)


@pytest.mark.parametrize(
    ("costs", "prices", "target", "kept"),
    [
        # the cheapest saves 5 of the 3 wanted, without it the next two save 6, the last alone 4
        ((5.0, 1.0, 5.0, 4.0), (0.01, 0.02, 0.03, 0.04), 12.0, (True, True, True, False)),
        # each next one overshoots by less: the search goes on though the second is no better than what replaced the
        # first
        ((9.0, 7.0, 5.0, 3.0), (0.01, 0.02, 0.03, 0.06), 21.0, (True, True, True, False)),
    ],
)
def test_of_choices_that_overshoot_the_nearest_stays(
    costs: tuple[float, ...], prices: tuple[float, ...], target: float, kept: tuple[bool, ...]
) -> None:
    elements = Elements([group(number, 1, []) for number in range(4)], [])
    own = Own(*costs)
    selector = Selector(elements, own, np.zeros(4, dtype=np.int64))
    left = selector.choose(np.ones(4, dtype=bool), own.costs * prices, target)
    assert left.tolist() == list(kept)
