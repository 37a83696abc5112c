"""MACs: by hand, by torch's counter, by fvcore; per sample, and differentiable in the route."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dyncompile as dc
from dyncompile.runtime.model import DynamicModel
from dyncompile.verify import count_macs
from tests import handmade
from tests.oracles import Dense, Grouped
from tests.support import FINE, Make, subject


def dense() -> tuple[nn.Module, Tensor]:
    return Dense(), torch.randn(2, 3, 8, 8)


def grouped() -> tuple[nn.Module, Tensor]:
    return Grouped(), torch.randn(2, 3, 8, 8)


class Einsum(nn.Module):
    """Products that are no layers: einsum, bmm, matmul with a parameter, a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.first = nn.ConvTranspose2d(3, 6, 2, 2), nn.Linear(6, 8)
        self.mixer, self.head = nn.Parameter(torch.randn(8, 10)), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(self.up(x).flatten(2).transpose(1, 2))
        scores = torch.einsum("bnc,bmc->bnm", y, y)
        return self.head(torch.bmm(scores, y).mean(1) @ self.mixer)


def einsum() -> tuple[nn.Module, Tensor]:
    return Einsum(), torch.randn(2, 3, 4, 4)


NETS = (
    handmade.resnet,
    handmade.grouped,
    handmade.depthwise_se,
    handmade.shuffle,
    handmade.vit,
    handmade.bert_like,
    handmade.decoder,
    handmade.flatten_cnn,
    dense,
    grouped,
    einsum,
)


def static_call(dyn: DynamicModel, make: Make, column: int) -> Any:
    """A call of the specialized network on one row."""
    static = dc.specialize(dyn, dyn.route(column))
    flat = [value[:1] for value in subject(make).flat]
    return static, tuple(flat)


@pytest.mark.parametrize("make", NETS)
def test_equal_to_what_torch_counts(make: Make) -> None:
    """FlopCounterMode / 2 on the source and on static networks, attention unfused."""
    one, dyn = subject(make), subject(make).dynamic(f"dsnet({FINE}, embedding=True)")
    args, kwargs = [v[:1] for v in one.args], {key: v[:1] for key, v in one.kwargs.items()}
    assert dyn.static_macs == count_macs(lambda: one.module(*args, **kwargs))
    for column in (0, 1, 3):
        static, flat = static_call(dyn, make, column)
        assert float(dyn.macs(dyn.route(column))) == count_macs(
            lambda static=static, flat=flat: static(*flat)
        )


@pytest.mark.parametrize("column", [0, 3])
@pytest.mark.parametrize("make", [handmade.resnet, handmade.grouped, handmade.bert_like, dense, grouped])
def test_equal_to_what_fvcore_counts(make: Make, column: int) -> None:
    """Convolutions, linear layers and matrix products; the networks have no operator that fvcore skips."""
    from fvcore.nn import FlopCountAnalysis

    dyn = subject(make).dynamic(f"dsnet({FINE}, embedding=True)")
    static, flat = static_call(dyn, make, column)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        analysis = FlopCountAnalysis(static, flat).unsupported_ops_warnings(False).tracer_warnings("none")
        counted = analysis.by_operator()
    total = sum(counted[name] for name in ("conv", "linear", "matmul", "bmm", "addmm", "einsum"))
    assert float(dyn.macs(dyn.route(column))) == total


def test_a_cnn_by_hand() -> None:
    dyn = subject(handmade.plain_cnn).dynamic(f"dsnet({FINE})")
    for column, (a, b, c) in enumerate([(2, 2, 2), (3, 4, 4), (5, 6, 6), (6, 8, 8)]):
        wanted = 64 * 9 * 3 * a + 16 * 9 * a * b + 16 * 9 * b * c + c * 5
        assert dyn.macs(dyn.route(column)).tolist() == [wanted]


def test_a_transformer_by_hand() -> None:
    """5 tokens of 12; heads of 4, and the hidden width, per block."""
    dyn = subject(handmade.vit).dynamic(f"dsnet({FINE})")
    for column, (heads, hidden) in enumerate([(1, 5), (2, 10), (2, 15), (3, 20)]):
        block = 5 * 12 * 3 * heads * 4 + 2 * heads * 5 * 5 * 4 + 5 * heads * 4 * 12 + 2 * 5 * 12 * hidden
        wanted = 4 * 12 * 3 * 16 + 2 * block + 12 * 5
        assert float(dyn.macs(dyn.route(column))) == wanted
    assert dyn.static_macs == wanted
    assert dyn.decision_macs == 0


def test_every_row_has_its_own_cost() -> None:
    dyn = subject(handmade.resnet).dynamic(f"dsnet({FINE}, per=stage)")
    rows = [(0, 3), (3, 0), (2, 2), (3, 3)]
    first, second = dyn.choices
    route = {first: torch.eye(4)[[a for a, _ in rows]], second: torch.eye(4)[[b for _, b in rows]]}
    alone = [float(dyn.macs(dyn.route({first: a, second: b}))) for a, b in rows]
    together = dyn.macs(route)
    assert together.dtype is torch.float64
    assert together.tolist() == alone
    assert alone[3] == dyn.static_macs
    assert len(set(alone)) == 4


def test_one_row_next_to_several() -> None:
    dyn = subject(handmade.resnet).dynamic(f"dsnet({FINE}, per=stage)")
    first, second = dyn.choices
    route = {first: torch.eye(4)[[0, 1, 2]], second: torch.eye(4)[[1]]}
    wanted = [float(dyn.macs(dyn.route({first: a, second: 1}))) for a in (0, 1, 2)]
    assert dyn.macs(route).tolist() == wanted


def test_the_gradient_is_the_cost_of_each_column() -> None:
    """With one choice the cost is linear in its row."""
    dyn = subject(handmade.resnet).dynamic(f"dsnet({FINE})")
    columns = [float(dyn.macs(dyn.route(column))) for column in range(4)]
    row = torch.tensor([[0.1, 0.2, 0.3, 0.4]], requires_grad=True)
    cost = dyn.macs({"width": row})
    cost.sum().backward()
    assert row.grad is not None
    assert row.grad.flatten().tolist() == pytest.approx(columns)
    assert float(cost.detach()) == pytest.approx(
        sum(p * c for p, c in zip((0.1, 0.2, 0.3, 0.4), columns, strict=True))
    )


def test_between_columns_it_is_the_expected_cost_of_independent_choices() -> None:
    dyn = subject(handmade.resnet).dynamic(f"dsnet({FINE}, per=stage)")
    first, second = dyn.choices
    p, q = torch.tensor([0.4, 0.1, 0.2, 0.3]), torch.tensor([0.25, 0.0, 0.25, 0.5])
    expected = sum(
        float(p[a] * q[b]) * float(dyn.macs(dyn.route({first: a, second: b})))
        for a, b in itertools.product(range(4), range(4))
    )
    assert float(dyn.macs({first: p[None], second: q[None]})) == pytest.approx(expected)


def test_a_route_must_name_every_choice() -> None:
    dyn = subject(handmade.resnet).dynamic(f"dsnet({FINE}, per=stage)")
    with pytest.raises(dc.RouteError, match=r"the route lacks the choices \['width.stage1'\]"):
        dyn.macs({"width.stage0": torch.eye(4)[:1]})


class Recurrent(nn.Module):
    """A layer whose cost is not modeled, between two that are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.lstm, self.second = nn.Linear(5, 6), nn.LSTM(6, 7, batch_first=True), nn.Linear(7, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(self.first(x))
        return self.head(self.second(y[:, -1]).relu())


def test_what_is_not_modeled_is_listed_and_not_guessed() -> None:
    module, x = Recurrent(), torch.randn(2, 4, 5)
    dyn = dc.dynamize(module, f"dsnet({FINE})", x)
    assert list(dyn.facts.macs.unmodeled.values()) == ["aten.lstm.input"]
    assert dyn.static_macs == 4 * 5 * 6 + 7 * 8 + 8 * 3
    report = dc.verify(dyn, module, x)
    (cost,) = (check for check in report.checks if check.name == "cost")
    assert "not modeled: aten.lstm.input" in cost.detail
