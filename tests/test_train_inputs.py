"""What `fit` leaves alone, and what it refuses before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import dyncompile as dc
from dyncompile.errors import InputError, SpecError
from dyncompile.train import fit
from tests.train_support import UNGATED, Interrupted, conv_net, conv_source, images, plain, recipe, run


class _Table(nn.Module):
    """A network with a fixed table, and with one of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = conv_source()
        self.table = nn.Parameter(torch.linspace(0, 1, 108).view(3, 6, 6), requires_grad=False)
        self.order = nn.Parameter(torch.tensor([3, 2, 1, 0]), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + self.table)[:, self.order]


def test_frozen_parameters_stay() -> None:
    source = _Table()
    source.inner.get_submodule("0").requires_grad_(False)
    dyn = dc.dynamize(source, UNGATED, torch.randn(2, 3, 6, 6))
    before = {name: p.detach().clone() for name, p in dyn.named_parameters()}
    frozen = [name for name, p in dyn.named_parameters() if not p.requires_grad]
    run(dyn, recipe())
    moved = {name for name, p in dyn.named_parameters() if not torch.equal(p, before[name])}
    assert frozen == ["table", "order", "inner.0.weight", "inner.0.bias"]
    assert moved == before.keys() - set(frozen)
    assert [name for name, p in dyn.named_parameters() if not p.requires_grad] == frozen


def test_a_frozen_model_is_refused() -> None:
    dyn = conv_net().requires_grad_(False)
    with pytest.raises(SpecError, match=r"requires gradients(.|\n)*requires_grad_\(True\)"):
        run(dyn, recipe())


def _regression(shape: tuple[int, ...]) -> TensorDataset:
    pixels, labels = images().tensors
    return TensorDataset(pixels, labels.float().view(-1, *shape))


@pytest.mark.parametrize("shape", [(), (1,)])
def test_numbers_are_no_classes_and_nothing_is_trained_before_that_is_said(shape: tuple[int, ...]) -> None:
    data, steps = _regression(shape), list[Any]()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output[:, 0], target.view(-1))

    with pytest.raises(InputError, match="pass metric="):
        fit(conv_net(), recipe(), data, data, loss=loss, progress=steps.append)
    assert not steps


def test_a_metric_is_tried_before_anything_is_trained() -> None:
    steps = list[Any]()

    def metric(output: Tensor, target: Tensor) -> float:
        raise Interrupted

    with pytest.raises(Interrupted):
        fit(conv_net(), recipe(plain()), images(), images(), metric=metric, progress=steps.append)
    assert not steps


def test_labels_of_validation_are_checked() -> None:
    pixels, labels = images().tensors
    with pytest.raises(InputError, match="out of range: 4 to 4"):
        run(conv_net(), recipe(), val_data=TensorDataset(pixels, labels + 1))
