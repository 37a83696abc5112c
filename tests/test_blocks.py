"""What precedes the first branch runs in blocks of rows, and gives what the whole batch at once gives."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import dyncompile as dc
from dyncompile.analysis.dims.algebra import BATCH
from dyncompile.runtime import blocks, branches
from dyncompile.runtime.rows import rows_between, select_rows
from tests.support import relative, undecided
from tests.test_routing import BRANCHES, Cnn, Vgg, dynamic, source

STEM = 8 * 8 * 8 * 4
"""Bytes per row of the widest value in front of the first branch of `Cnn` at 8 x 8 pixels."""


class Reads(TorchDispatchMode):
    """Notes how many samples every convolution sees that reads from the memory of `images`."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.rows: list[int] = []
        self._memory = images.untyped_storage().data_ptr()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        convolves = func in (torch.ops.aten.convolution.default, torch.ops.aten.conv2d.default)
        if convolves and args[0].untyped_storage().data_ptr() == self._memory:
            self.rows.append(len(args[0]))
        return func(*args, **(kwargs or {}))


@contextmanager
def block_of(monkeypatch: pytest.MonkeyPatch, size: int) -> Iterator[None]:
    """Blocks of so many bytes on a single thread."""
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "BLOCK", size)
        patch.setattr(torch, "get_num_threads", lambda: 1)
        yield


def mixed(dyn: dc.DynamicModel, rows: int) -> dc.Route:
    """Rows of every alternative, differently at each choice."""
    return {
        c.name: torch.eye(c.width)[(torch.arange(rows) * step) % c.width]
        for step, c in enumerate(dyn.choices.values(), 1)
    }


@pytest.mark.parametrize("deployed", [False, True])
@pytest.mark.parametrize(("rows", "expected"), [(2, [2]), (7, [2, 2, 3]), (9, [3, 3, 3]), (10, [2, 3, 2, 3])])
def test_blocks_give_what_the_batch_gives(
    monkeypatch: pytest.MonkeyPatch, rows: int, expected: list[int], deployed: bool
) -> None:
    dyn = dynamic(Cnn)
    model = dc.deploy(dyn) if deployed else dyn
    x = torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    policy = dc.Forced(mixed(dyn, rows))
    with torch.no_grad():
        whole, _ = model.run(x, policy=policy)
        with block_of(monkeypatch, 3 * STEM + 5), Reads(x) as found:
            output, route = model.run(x, policy=policy)
    assert found.rows == expected
    assert relative(whole, output) < 1e-6
    assert all(torch.equal(route[name], given) for name, given in policy.route.items())


def test_decision_nets_see_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    dyn = undecided(dynamic(Cnn), (x,))
    with torch.no_grad():
        whole = dyn.record(x, policy=dc.Learned())
        with block_of(monkeypatch, 3 * STEM), Reads(x) as found:
            parted = dyn.record(x, policy=dc.Learned())
    assert len({tuple(row) for row in torch.cat([*whole.route.values()], 1).tolist()}) > 1
    assert found.rows == [2, 3, 3]
    assert relative(whole.output, parted.output) < 1e-5
    assert all(relative(rows, parted.logits[name]) < 1e-5 for name, rows in whole.logits.items())


def test_what_learns_runs_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    dyn = copy.deepcopy(dynamic(Cnn))
    x, policy = torch.randn(6, 3, 8, 8), dc.Forced(mixed(dyn, 6))
    with block_of(monkeypatch, 3 * STEM), Reads(x) as found:
        dyn.run(x, policy=policy)  # with gradients
        with torch.no_grad():
            dyn.train().run(x, policy=policy)  # norms see the batch
    assert found.rows == [6, 6]


def test_much_weight_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    dyn = source(Cnn).dynamic(BRANCHES)
    weights = 4 * sum(p.numel() for n, p in dyn.named_parameters() if n.startswith("stem."))
    x, policy = torch.randn(6, 3, 8, 8), dc.Forced(mixed(dyn, 6))
    with block_of(monkeypatch, weights - 1), torch.no_grad(), Reads(x) as found:
        dyn.run(x, policy=policy)
    assert found.rows == [6]
    again = source(Cnn).dynamic(BRANCHES)
    with block_of(monkeypatch, weights), torch.no_grad(), Reads(x) as found:
        again.run(x, policy=policy)
    assert found.rows == [1] * 6


def test_what_precedes_alternatives_to_the_trunk_runs_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    dyn = dynamic(Vgg, "routing(connections=steps)")
    x, policy = torch.randn(6, 3, 8, 8), dc.Forced(mixed(dyn, 6))
    with torch.no_grad():
        whole, _ = dyn.run(x, policy=policy)
        with block_of(monkeypatch, 3 * 6 * 64 * 4), Reads(x) as found:
            output, _ = dyn.run(x, policy=policy)
    assert found.rows == [3, 3]
    assert relative(whole, output) < 1e-6


@pytest.mark.parametrize(
    ("shape", "found"),
    [((12, 2), ((BATCH, 3), (2,))), ((2, 4), ((2,), (BATCH,))), ((5,), ((5,),))],
    ids=["windows", "rows behind", "none"],
)
def test_rows_between_are_the_rows_selected(shape: tuple[int, ...], found: Any) -> None:
    values = torch.randn(shape)
    assert torch.equal(
        rows_between(values, found, 1, 3, 4), select_rows(values, found, torch.tensor([1, 2]), 4)
    )
    listed = rows_between([values, 7], [found, None], 1, 3, 4)
    assert torch.equal(listed[0], rows_between(values, found, 1, 3, 4))
    assert listed[1] == 7


# -- branches -------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Branches on maps of 8 x 8, with and without a ReLU behind the sum, one with another shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.plain = nn.Conv2d(8, 8, 3, padding=1)
        self.bare = nn.Conv2d(8, 8, 3, padding=1)
        self.other = nn.Conv2d(8, 8, 3, padding=1)
        self.shortcut = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x).relu()
        x = (x + self.plain(x).relu()).relu()
        y = x + self.bare(x)
        z = (self.shortcut(y) + self.other(y)).relu()
        return self.head(z.mean((2, 3))), x  # x is read after the second sum: its memory is not free


class Runs(TorchDispatchMode):
    """Notes how many samples every 3 x 3 convolution of 8 channels sees, and rows that are gathered."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []
        self.gathered = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        convolves = func in (torch.ops.aten.convolution.default, torch.ops.aten.conv2d.default)
        if convolves and args[1].shape == (8, 8, 3, 3):
            self.rows.append(len(args[0]))
        self.gathered += func is torch.ops.aten.index_select.default and args[0].dim() == 4
        return func(*args, **(kwargs or {}))


SKIPPED = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [0, 1, 1], [1, 1, 0], [1, 0, 1], [1, 1, 1.0]])
IN_RUNS = {  # maps are of one size, and so many fit in a block
    1: [1] * 15,
    2: [2, 1, 2, 1, 2, 2, 1, 1, 1, 2],
    4: [3, 3, 2, 2, 1, 1, 1, 2],
    5: [6, 5, 4],
}


@pytest.mark.parametrize("gain", [1.0, 0.75])
@pytest.mark.parametrize("most", IN_RUNS)
@pytest.mark.parametrize("deployed", [False, True])
def test_large_rows_run_where_they_lie(
    monkeypatch: pytest.MonkeyPatch, most: int, deployed: bool, gain: float
) -> None:
    x = torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model = Residual().eval()
    dyn = dc.dynamize(model, "lcnet(channels=False)", (x,)).eval()
    fast = dc.deploy(dyn) if deployed else dyn
    route = {name: SKIPPED[:, i : i + 1] * gain for i, name in enumerate(dyn.choices)}
    policy = dc.Forced(route)
    with torch.no_grad():
        whole = dyn.record(x, policy=policy, execution="dense").output
        weights = 4 * (8 * 8 * 9 + 8)
        with block_of(monkeypatch, max(most * 8 * 64 * 4, weights)), Runs() as found:
            output, _ = fast.run(x, policy=policy)
    assert found.rows == IN_RUNS[most]
    assert found.gathered == (3 if most > branches.FEW else 0)
    assert all(relative(a, b) < 1e-6 for a, b in zip(whole, output, strict=True))
    assert torch.equal(x, torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(0)))


def test_branches_that_learn_gather_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(7, 3, 8, 8)
    dyn = dc.dynamize(Residual().eval(), "lcnet(channels=False)", (x,)).eval()
    policy = dc.Forced({name: SKIPPED[:, i : i + 1] for i, name in enumerate(dyn.choices)})
    with block_of(monkeypatch, 4096), Runs() as found:
        dyn.run(x, policy=policy)
    assert found.rows == [6, 5, 4]


def test_branches_of_many_weights_gather_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(7, 3, 8, 8)
    dyn = dc.dynamize(Residual().eval(), "lcnet(channels=False)", (x,)).eval()
    policy = dc.Forced({name: SKIPPED[:, i : i + 1] for i, name in enumerate(dyn.choices)})
    with block_of(monkeypatch, 4 * (8 * 8 * 9 + 8) - 1), torch.no_grad(), Runs() as found:
        dyn.run(x, policy=policy)
    assert found.rows == [6, 5, 4]
