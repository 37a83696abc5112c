"""Deployed models: norms folded, no gradients, the same routes and outputs, any batch, several threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, fx, nn

import dyncompile as dc
from dyncompile.errors import SpecError
from dyncompile.runtime.model import DynamicModel
from tests import handmade
from tests.support import Make, relative, snapshot, subject, undecided

NORM = torch.ops.aten.batch_norm.default
SLICED = "dsnet(divisor=1, minimum=1, per=stage)"
METHODS = ("lcnet", "lcnet(bits=True, channels=False)", SLICED, f"{SLICED}; lcnet(channels=False)")


def norms(dyn: DynamicModel) -> list[fx.Node]:
    return [node for node in dyn.program.graphs["eval"].nodes if node.target is NORM]


def made(make: Make, method: str) -> DynamicModel:
    return subject(make).dynamic(method.split("; "))


CASES = (
    *((handmade.resnet, method) for method in METHODS),
    (handmade.depthwise_se, "lcnet"),
    (handmade.vit, "lcnet"),
)


@pytest.mark.parametrize(("make", "method"), CASES)
def test_routes_and_outputs_are_those_of_the_model(make: Make, method: str) -> None:
    dyn = made(make, method)
    x = torch.cat([subject(make).args[0]] * 2)
    dyn = undecided(dyn, (x,))
    fast = dc.deploy(dyn)
    for policy in (dc.Full(), dc.Learned(), dc.Sampled(3, per_sample=True), dc.Smallest()):
        with torch.no_grad():
            expected, route = dyn.run(x, policy=policy)
        output, taken = fast.run(x, policy=policy)
        assert relative(expected, output) < 1e-5
        assert all(torch.allclose(route[name], taken[name], atol=1e-4) for name in route)
        assert not output.requires_grad
        assert torch.allclose(fast.macs(taken), dyn.macs(taken))


def test_norms_are_folded_where_no_choice_picks_their_statistics() -> None:
    assert norms(made(handmade.resnet, "lcnet"))
    assert not norms(dc.deploy(made(handmade.resnet, "lcnet")))
    sliced = made(handmade.resnet, SLICED)
    picked = [n for n in norms(sliced) if n.args[3].target is not torch.ops]  # pyright: ignore
    left = norms(dc.deploy(sliced))
    assert 0 < len(left) < len(picked)


class Shared(nn.Module):
    """One convolution under two norms, and a norm that follows none."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.first, self.second, self.third = (nn.BatchNorm2d(4) for _ in range(3))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 3]."""
        x = x + self.first(self.conv(x)).relu()
        x = x + self.second(self.conv(x)).relu()
        return self.head(self.third(x).mean((2, 3)))


def test_shared_weights_are_left_alone() -> None:
    model = Shared().eval()
    for norm in (model.first, model.second, model.third):
        nn.init.uniform_(norm.running_mean)  # pyright: ignore
        nn.init.uniform_(norm.weight)
    x = torch.randn(3, 4, 8, 8)
    fast = dc.deploy(dc.dynamize(model, "lcnet(channels=False)", x))
    assert len(norms(fast)) == 3
    assert torch.allclose(fast(x), model(x), atol=1e-5)


def test_the_model_stays_as_it_is_and_the_copy_is_its_own() -> None:
    dyn = made(handmade.resnet, "lcnet")
    before, (x,) = snapshot(dyn), subject(handmade.resnet).args
    fast = dc.deploy(dyn)
    assert all(torch.equal(value, before[name]) for name, value in snapshot(dyn).items())
    assert all(parameter.requires_grad for parameter in dyn.parameters())
    output = fast(x)
    with torch.no_grad():
        for parameter in dyn.parameters():
            parameter.add_(1)
    assert torch.equal(fast(x), output)
    assert not fast.train().training
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    assert torch.equal(dc.deploy(fast)(x), output)


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_any_batch_and_any_dtype(rows: int) -> None:
    dyn = made(handmade.resnet, "lcnet").double()
    x = torch.randn(rows, *subject(handmade.resnet).args[0].shape[1:]).double()
    with torch.no_grad():
        expected = dyn(x)
    assert torch.allclose(dc.deploy(dyn)(x), expected, atol=1e-10)


def test_threads_give_the_same_results() -> None:
    (x,) = subject(handmade.resnet).args
    fast = dc.deploy(undecided(made(handmade.resnet, f"{SLICED}; lcnet(channels=False)"), (x,)))
    batches = [torch.roll(x, i, 0)[: 1 + i % len(x)] for i in range(24)]
    alone = [fast(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(fast, batches))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(SpecError, match="no backend 'tensorrt'"):
        dc.deploy(made(handmade.resnet, "lcnet"), backend="tensorrt")
