"""The folded state of deployed models: which norms are folded, into what memory, and who may load it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dyncompile as dc
from dyncompile.errors import DyncompileError, InputError
from tests.nets import randomize
from tests.support import same
from tests.test_basis import mixed_net
from tests.tiny import conv_net


class Positions(nn.Module):
    """Linear layers over [B, L, 8] whose norms are over the positions L, or over outputs [B, 8]."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(8, 8) for _ in range(3))
        self.along, self.across = nn.BatchNorm1d(length), nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 3]."""
        x = self.first(x).relu()
        x = x + self.along(self.second(x)).relu()
        x = x.mean(1)
        return self.head(x + self.across(self.third(x)).relu())


class Blurred(nn.Module):
    """A norm after a convolution whose weight is one kernel, expanded to all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.block, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 3)
        self.register_buffer("kernel", torch.full((1, 1, 3, 3), 1 / 9).expand(8, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 3]."""
        x = self.norm(F.conv2d(self.stem(x), self.kernel, groups=8)).relu()  # pyright: ignore
        return self.head((x + self.block(x).relu()).mean((2, 3)))


class Volumes(nn.Module):
    """Grouped convolutions over one and three axes, and a transposed one, each with a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.wide_norm = nn.Conv3d(2, 8, 3, groups=2), nn.BatchNorm3d(8)
        self.long, self.long_norm = nn.Conv1d(8, 8, 3, padding=1, groups=4), nn.BatchNorm1d(8)
        self.back, self.back_norm = nn.ConvTranspose1d(8, 8, 3, padding=1), nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 3]."""
        x = self.wide_norm(self.wide(x)).flatten(2).relu()
        x = x + self.long_norm(self.long(x)).relu()
        return self.head((x + self.back_norm(self.back(x)).relu()).mean(2))


@pytest.mark.parametrize(
    ("make", "shape", "method", "left"),
    [
        (lambda: Positions(8), (8, 8), "lcnet(channels=False)", 1),
        (lambda: Positions(5), (5, 8), "lcnet(channels=False)", 1),
        (lambda: Positions(8), (8, 8), "basisnet(overhead=100.0)", 1),
        (Blurred, (3, 9, 9), "lcnet(channels=False)", 0),
        (Volumes, (2, 4, 4, 4), "lcnet(channels=False)", 1),
    ],
)
@torch.no_grad()
def test_norms_are_folded_where_they_are_over_outputs(
    make: Callable[[], nn.Module], shape: tuple[int, ...], method: str, left: int
) -> None:
    model, x = make().eval(), torch.randn(4, *shape)
    randomize(model)
    dyn = dc.dynamize(model, method, x).eval()
    fast = dc.deploy(dyn)
    assert fast.program.listing().count("aten.batch_norm") == left
    torch.testing.assert_close(fast.run(x, policy=dc.Full())[0], model(x))
    for policy in (dc.Smallest(), dc.Learned()):
        torch.testing.assert_close(fast.run(x, policy=policy)[0], dyn.run(x, policy=policy)[0])


@torch.no_grad()
def test_weights_that_show_one_memory_are_folded_apart() -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(2))
            self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))
            self.convs[1].weight.data = self.convs[0].weight.data  # pyright: ignore
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            for conv, norm in zip(self.convs, self.norms, strict=True):
                x = x + norm(conv(x)).relu()
            return self.head(x.mean((2, 3)))

    model, x = Twins().eval(), torch.randn(2, 4, 3, 3)
    for norm in model.norms:
        nn.init.uniform_(norm.weight)  # pyright: ignore
    fast = dc.deploy(dc.dynamize(model, "lcnet(channels=False)", x))
    assert "batch_norm" not in fast.program.listing()
    torch.testing.assert_close(fast.run(x, policy=dc.Full())[0], model(x))


@torch.no_grad()
def test_what_is_deployed_twice_stays_the_same() -> None:
    _, dyn = mixed_net()
    fast = dc.deploy(dyn)
    again, x = dc.deploy(fast), torch.randn(5, 3, 12, 12)
    for policy in (dc.Learned(), dc.Full(), dc.Smallest()):
        assert torch.equal(again.run(x, policy=policy)[0], fast.run(x, policy=policy)[0])


@pytest.mark.parametrize("memory", ["shared", "packed"])
def test_a_deployed_model_loads_its_like_alone(memory: Any) -> None:
    module, x = conv_net()
    dyn = dc.dynamize(module.eval(), "dsnet(ratios=(0.5, 1.0))", x).eval()
    fast = dc.deploy(dyn, memory=memory)
    expected = fast.run(x, policy=dc.Smallest())[0]
    for strict in (True, False):
        with pytest.raises(DyncompileError, match="a model that is not deployed") as caught:
            fast.load_state_dict(dyn.state_dict(), strict=strict)
        assert "deploy a dynamic model anew" in str(caught.value)
        before = {name: value.clone() for name, value in dyn.state_dict().items()}
        folded = {name: value * 2 for name, value in fast.state_dict().items()}
        with pytest.raises(DyncompileError, match="a model that is deployed"):
            dyn.load_state_dict(folded, strict=strict)
        assert same(before, dyn.state_dict())
    for other in (copy.deepcopy(fast), dc.deploy(dyn), dc.deploy(fast)):
        fast.load_state_dict({name: value * 0.5 for name, value in fast.state_dict().items()})
        fast.load_state_dict(other.state_dict())
        assert torch.equal(fast.run(x, policy=dc.Smallest())[0], expected)


def test_what_deployed_models_refuse() -> None:
    module, x = conv_net()
    fast = dc.deploy(dc.dynamize(module.eval(), "dsnet(ratios=(0.5, 1.0))", x))
    with pytest.raises(DyncompileError, match="verify the dynamic model"):
        dc.verify(fast, module, x)
    with pytest.raises(InputError, match="at least one"):
        fast.warm_up(x[:0])


@torch.no_grad()
def test_packed_memory_serves_gains() -> None:
    module, x = conv_net()
    dyn = dc.dynamize(module.eval(), "lcnet(layers=False)", x).eval()
    fast = dc.deploy(dyn, memory="packed")
    fast.warm_up(x)
    torch.testing.assert_close(
        fast.run(x, policy=dc.Smallest())[0], dyn.run(x, policy=dc.Smallest())[0], rtol=1e-4, atol=1e-5
    )
