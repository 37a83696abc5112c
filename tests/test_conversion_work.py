"""What `dynamize` does not do twice, or before it is needed."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import nn

import dyncompile as dc
from dyncompile.analysis.dims import facts
from dyncompile.collector import paused_collector
from dyncompile.runtime import model as runtime
from tests import handmade


@pytest.mark.parametrize(
    ("method", "inferences"),
    [
        ("dsnet", 2),  # to plan, and once the gate is there
        ("lcnet(channels=False)", 1),  # nothing is resized
        (["dsnet", "lcnet(channels=False)"], 4),  # the second resizes once more what it has added to
    ],
)
def test_types_are_inferred_once_per_state_of_the_graphs(
    method: Any, inferences: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    infer = facts.infer
    monkeypatch.setattr(facts, "infer", lambda program: seen.append(program) or infer(program))
    model, example = handmade.resnet()
    dc.dynamize(model, method, example)
    assert len(seen) == inferences


def test_graphs_are_compiled_when_they_first_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    compile_graph = runtime.compile_graph

    def counted(graph: Any, name: str, state: nn.Module) -> Any:
        seen.append(name)
        return compile_graph(graph, name, state)

    monkeypatch.setattr(runtime, "compile_graph", counted)
    model, example = handmade.resnet()
    dyn = dc.dynamize(model, "dsnet", example).eval()
    assert not seen
    for _ in range(2):
        dyn.run(example, policy=dc.Full())
    assert seen == ["eval"]
    dyn.train().run(example, policy=dc.Full())
    assert seen == ["eval", "train"]


def test_the_collector_rests_inside_and_is_as_before_afterwards() -> None:
    assert gc.isenabled()
    with paused_collector():
        with paused_collector():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with paused_collector():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


class _Refusing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.layer(x).sum() > 0:
            return x
        return -x


def test_the_collector_works_again_after_a_failure() -> None:
    with pytest.raises(dc.CaptureError):
        dc.dynamize(_Refusing(), "dsnet", torch.randn(2, 4))
    assert gc.isenabled()
