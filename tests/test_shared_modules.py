"""Modules of several names: one module in the dynamic model, too."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import dyncompile as dc
from tests.support import same


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.norm(self.layer(x))).relu()


class Stages(nn.Module):
    """The stages of a backbone are named again, as wrappers for segmentation do; one name is a whole path."""

    def __init__(self) -> None:
        super().__init__()
        stem = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.backbone = nn.Sequential(*stem, Block(), Block())
        self.first, self.second = self.backbone[:3], self.backbone[3]
        self.parts = nn.ModuleDict({"third": nn.ModuleList([self.backbone[4]])})
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        return self.head(self.backbone[4](x).mean((2, 3)))


def cast(dtype: torch.dtype) -> tuple[dc.DynamicModel, nn.Module, Tensor]:
    """A dynamic model, its source and an example, moved to a type after all of them were made."""
    net, x = Stages(), torch.randn(4, 3, 8, 8)
    dyn = dc.dynamize(net, "lcnet", x)
    dyn.policy = dc.Full()
    return dyn.to(dtype), net.to(dtype), x.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_statistics_stay_one_under_all_names(dtype: torch.dtype) -> None:
    dyn, net, x = cast(dtype)
    assert same(net.train()(x), copy.deepcopy(dyn).train()(x))
    dyn.train()(x)
    assert list(dyn.state_dict())[: len(net.state_dict())] == list(net.state_dict())
    assert same(net.state_dict(), {name: dyn.state_dict()[name] for name in net.state_dict()})
    for module in (dyn, copy.deepcopy(dyn)):
        buffers = dict(module.named_buffers(remove_duplicate=False))
        assert buffers["backbone.1.running_mean"] is buffers["first.1.running_mean"]
        assert buffers["backbone.4.norm.running_var"] is buffers["parts.third.0.norm.running_var"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_contract_holds_after_a_cast(dtype: torch.dtype) -> None:
    dyn, net, x = cast(dtype)
    dc.verify(dyn, net, x)


def test_a_checkpoint_of_a_cast_model(tmp_path: Path) -> None:
    dyn, net, x = cast(torch.float64)
    loaded = dc.load(dc.save(dyn.eval(), tmp_path), source=net.float())
    assert same(dyn(x), loaded.eval().run(x, policy=dc.Full())[0])
