"""Networks without weights in memory: what is decided about them is what is decided about real ones."""

from __future__ import annotations

import pytest
import torch

import dyncompile as dc
from benchmarks.scaling_nets import resnet, transformer


@pytest.mark.parametrize("method", ["dsnet", "lcnet"])
@pytest.mark.parametrize("network", ["resnet", "transformer"])
def test_network_on_the_meta_device_becomes_dynamic(network: str, method: str) -> None:
    build, shape = (resnet, (2, 3, 8, 8)) if network == "resnet" else (transformer, (2, 4, 16))
    real = dc.dynamize(build(1), method, torch.randn(shape))
    with torch.device("meta"):
        empty = dc.dynamize(build(1), method, torch.randn(shape))
    assert {str(v.device) for v in empty.state_dict().values()} == {"meta"}
    assert list(empty.state_dict()) == list(real.state_dict())
    assert empty.static_macs == real.static_macs
    assert torch.equal(empty.macs(empty.route(0)), real.macs(real.route(0)))
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(real.state_dict())
    x = torch.randn(3, *shape[1:])
    wanted, given = (one.eval().run(x, policy=dc.Smallest())[0] for one in (real, filled))
    assert torch.equal(wanted, given)
