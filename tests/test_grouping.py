"""Rows that keep different channels: apart, together or masked, they give the same values."""

from __future__ import annotations

from functools import cache, partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import dyncompile as dc
from dyncompile.policies import Learned
from dyncompile.program import Decision
from dyncompile.runtime.grouping import APART, MASK, NARROW, Costs, Grouping, Work, measure_costs
from dyncompile.verify import count_macs
from dyncompile.zoo import randomize
from tests import handmade
from tests.support import Make, Subject, relative, undecided

WAYS = {"default": Costs(), "narrow": NARROW, "mask": MASK, "apart": APART}
ROWS, KINDS, TOLERANCE = 6, 3, 2e-5


def small() -> tuple[nn.Module, Tensor]:
    """Two residual blocks of two convolutions."""

    class Block(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return (input + super().forward(input)).relu()

    def block() -> nn.Module:
        return Block(nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 1))

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), block(), block(), nn.Flatten(), nn.Linear(288, 5))
    return net, torch.randn(ROWS, 3, 8, 8)


@cache
def source(make: Make) -> Subject:
    module, example = make()
    with torch.no_grad():
        return Subject(randomize(module.eval()), (example,), {})


@cache
def _dynamic(make: Make) -> dc.DynamicModel:
    return source(make).dynamic("lcnet")


def dynamic(make: Make, costs: Costs) -> dc.DynamicModel:
    """Shared: whoever wants it sets its costs."""
    dyn = _dynamic(make)
    dyn.costs = costs
    return dyn


def patterns(dyn: dc.DynamicModel, rows: int, *, skip: bool) -> dict[str, Tensor]:
    """Channels of three kinds in turn, gains of their own; with `skip` some rows leave out some branches."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, Tensor] = {}
    for number, choice in enumerate(dyn.choices.values()):
        kept = torch.rand(KINDS, choice.width, generator=generator) < 0.5
        kept[:, 0] |= ~kept.any(1)
        gains = kept[torch.arange(rows) % KINDS] * (0.5 + torch.rand(rows, choice.width, generator=generator))
        if choice.name.startswith("layer."):
            gains = torch.ones(rows, 1)
            gains[number % 2 :: 3] = 0.0 if skip else 1.0
        found[choice.name] = gains
    return found


@pytest.mark.parametrize("make", [small, handmade.resnet, handmade.vit], ids=lambda make: make.__name__)
@pytest.mark.parametrize("way", WAYS)
def test_all_ways_give_what_masks_give(make: Make, way: str) -> None:
    dyn, args = dynamic(make, WAYS[way]), source(make).args
    policy = dc.Forced(patterns(dyn, len(args[0]), skip=True))
    with torch.no_grad():
        masked = dyn.record(*args, policy=policy, execution="dense").output
        assert relative(masked, dyn.run(*args, policy=policy)[0]) <= TOLERANCE


@pytest.mark.parametrize("way", WAYS)
def test_what_gates_say_is_carried_out_in_all_ways(way: str) -> None:
    args = source(small).args
    dyn = undecided(dynamic(small, WAYS[way]), args)
    assert dyn.costs == WAYS[way]
    with torch.no_grad():
        output, route = dyn.run(*args, policy=Learned())
        masked = dyn.record(*args, policy=dc.Forced(route), execution="dense").output
    assert relative(masked, output) <= TOLERANCE
    assert any(len({tuple(row) for row in (rows > 0).tolist()}) > 2 for rows in route.values())


def counted(way: str, route: dict[str, Tensor]) -> float:
    return count_macs(partial(dynamic(small, WAYS[way]).run, *source(small).args, policy=dc.Forced(route)))


def test_work_is_that_of_rows_of_the_union_or_of_the_whole() -> None:
    dyn = dynamic(small, NARROW)
    route = patterns(dyn, ROWS, skip=False)
    union = {name: (rows > 0).any(0, keepdim=True).float() for name, rows in route.items()}
    assert counted("apart", route) == float(dyn.macs(route).sum())
    assert counted("narrow", route) == ROWS * float(dyn.macs(union))
    assert counted("mask", route) == ROWS * dyn.static_macs
    assert float(dyn.macs(route).sum()) < ROWS * float(dyn.macs(union)) < ROWS * dyn.static_macs


def test_rows_that_skip_a_branch_are_in_none_of_its_groups() -> None:
    dyn = dynamic(small, APART)
    route = patterns(dyn, ROWS, skip=True)
    assert (
        counted("apart", route)
        == float(dyn.macs(route).sum())
        < float(dyn.macs(patterns(dyn, ROWS, skip=False)).sum())
    )


def test_copies_take_costs_along() -> None:
    dyn = dynamic(small, MASK)
    assert dc.deploy(dyn).costs == MASK


# -- the rule ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("positions", "rows", "share", "narrows"),
    [
        (1, 1, 0.5, False),  # a linear layer for one sample: a gather touches as much as the layer does
        (196, 1, 0.5, True),
        (196, 1, 0.99, False),  # nearly all are kept
        (1, 64, 0.5, True),
        (49, 1, 0.9, False),
        (49, 32, 0.9, True),
    ],
)
def test_narrowing_pays_where_it_saves_more_than_gathers_cost(
    positions: int, rows: int, share: float, narrows: bool
) -> None:
    work = Work(((positions * 256.0 * 256, ("d",)),), ((256.0 * 256, ("d",)),))
    assert (rows * (1 - share) / share >= work.pays(Costs())) == narrows


def grouping(costs: Costs, moved: int = 0) -> Grouping:
    return Grouping(Work(((100.0, ("d",)),), ()), {"c": ("d",)}, calls=2, moved=moved, costs=costs)


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_groups_hold_every_row_once_and_alike_rows_together(rows: list[list[bool]]) -> None:
    found = grouping(APART).divide({"c": Decision(torch.tensor(rows).float(), 0)})
    groups = [list(range(len(rows)))] if found is None else [group.tolist() for group in found]
    assert sorted(at for group in groups for at in group) == list(range(len(rows)))
    alike = [{tuple(rows[at]) for at in group} for group in groups]
    assert all(a.isdisjoint(b) for i, a in enumerate(alike) for b in alike[:i])
    kept = [{sum(one) for one in group} for group in alike]
    assert all(
        max(map(max, [kinds])) <= 1 for group, kinds in zip(alike, kept, strict=True) if len(group) > 1
    )


def test_rows_part_where_it_pays() -> None:
    rows = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]]).repeat(2, 1)
    decided = {"c": Decision(rows, 0)}
    dear = Costs(mac=1.0, gather=0.0, move=0.0, call=1e3)
    found = grouping(APART).divide(decided)
    assert found is not None
    assert [group.tolist() for group in found] == [[1, 3], [0, 2]]
    assert grouping(dear).divide(decided) is None  # calls cost more than is saved
    moving = Costs(mac=1.0, gather=0.0, move=1.0, call=0.0)
    assert grouping(moving, moved=1000).divide(decided) is None  # so does moving rows
    assert grouping(APART).divide({"c": Decision(rows[:1], 0)}) is None
    assert grouping(APART).divide({"c": Decision(rows[:1].expand(4, -1), 0)}) is None


def test_costs_are_measured_once() -> None:
    costs = measure_costs(repeats=2)
    assert min(costs.mac, costs.gather, costs.move, costs.call) > 0
    assert measure_costs(repeats=2) is costs
