"""The drawn networks are what the property tests assume: runnable in both modes, captured, reproducible."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from tests import nets
from tests.nets import Net, cnns, transformer_nets

FEW = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.filter_too_much),
)


@pytest.fixture(autouse=True, scope="module")
def _no_fast_path() -> Iterator[None]:
    """The fused nn.MultiheadAttention of eager evaluation differs from any captured graph by about 3e-5."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


@pytest.mark.slow
@settings(FEW, max_examples=13)
@given(cnns())
def test_cnns(net: Net) -> None:
    _check(net)


@pytest.mark.slow
@settings(FEW, max_examples=10)
@given(transformer_nets())
def test_transformer_nets(net: Net) -> None:
    _check(net)


def _check(net: Net) -> None:
    _check_rebuild(net)
    _check_weights(net)
    _check_capture(net, training=True)
    _check_capture(net, training=False)


def _check_rebuild(net: Net) -> None:
    again = eval(repr(net), dict(vars(nets)))
    for name, tensor in net.module.state_dict().items():
        assert torch.equal(tensor, again.module.state_dict()[name]), name
    assert all(map(torch.equal, (*net.args, *net.kwargs.values()), (*again.args, *again.kwargs.values())))


def _check_weights(net: Net) -> None:
    for name, parameter in net.module.named_parameters():
        assert parameter.numel() == 1 or parameter.std() > 0, f"{name} is constant"


def _check_capture(net: Net, training: bool) -> None:
    net.module.train(training)
    captured = torch.export.export(
        net.module, net.args, net.kwargs, dynamic_shapes=net.dynamic_shapes, strict=False
    ).module()
    for batch in (1, 2, 5):
        args, kwargs = net.inputs(batch, seed=batch)
        state = {name: tensor.clone() for name, tensor in net.module.state_dict().items()}
        expected = _seeded(net.module, args, kwargs)
        net.module.load_state_dict(state)
        assert expected.shape[0] == batch
        assert expected.isfinite().all()
        assert torch.equal(_seeded(captured, args, kwargs), expected), f"batch {batch}, training {training}"
        net.module.load_state_dict(state)


def _seeded(module: torch.nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Tensor:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        return module(*args, **kwargs)
