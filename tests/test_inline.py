"""Networks that a pass inserts: captured, copied among the nodes, typed and priced like all others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import dyncompile as dc
from dyncompile.analysis.facts import analyze
from dyncompile.capture import capture
from dyncompile.pipeline import Plan, apply_passes
from dyncompile.program import MODES, Mode, Program
from dyncompile.rewrite import Editor
from dyncompile.runtime.model import DynamicModel
from dyncompile.spec import parse_specs


class Net(nn.Module):
    """A convolution, pooling, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 5]."""
        return self.head(F.relu(self.norm(self.stem(x))).mean((2, 3)))


class Added(nn.Module):
    """What is inserted: batch norm, a constant, a keyword argument, a size taken from the input."""

    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.register_buffer("shift", torch.randn(8, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A map like `x`, and its mean [B, 8]."""
        y = torch.add(self.norm(self.mix(x)), self.shift, alpha=0.5) * torch.tensor(2.0)
        y = y.reshape(x.shape[0], 8, -1).reshape_as(x)
        return y, y.mean((2, 3))


def inserted(net: nn.Module, added: nn.Module, size: int = 10) -> DynamicModel:
    """`net` with `added` applied to what its ReLU gives, in both graphs."""
    like = next(net.parameters())
    program = capture(net, (torch.randn(2, 3, size, size).to(like.dtype),))
    editor = Editor(program, analyze(program))
    graphs = editor._graphs  # pyright: ignore[reportPrivateUsage]  # what passes reach through plans
    after: dict[Mode, fx.Node] = {mode: _relu(graph) for mode, graph in graphs.items()}
    users: dict[Mode, list[fx.Node]] = {mode: list(node.users) for mode, node in after.items()}
    inputs: dict[Mode, list[fx.Node]] = {mode: [node] for mode, node in after.items()}
    outputs = editor.insert(added, "added.first", inputs)
    for mode in MODES:
        for user in users[mode]:
            user.replace_input_with(after[mode], outputs[mode][0])
    return DynamicModel(editor.finish("added", Plan()))


def _relu(graph: fx.Graph) -> fx.Node:
    return next(node for node in graph.nodes if node.target is torch.ops.aten.relu.default)


def expected(net: Net, added: Added, x: Tensor) -> Tensor:
    """The same by hand."""
    return net.head(added(F.relu(net.norm(net.stem(x))))[0].mean((2, 3)))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("rows", [1, 5])
def test_inserted_network_runs_where_it_was_put(training: bool, rows: int) -> None:
    net, added = Net().train(training), Added().train(training)
    dyn = inserted(net, added).train(training)
    x = torch.randn(rows, 3, 10, 10)
    assert torch.equal(dyn(x), expected(net, added, x))
    for name, value in added.state_dict().items():  # statistics of batch norms move alike
        assert torch.equal(dyn.state_dict()[f"dyn.added.first.{name}"], value), name


def test_state_is_a_copy_under_its_prefix() -> None:
    net, added = Net(), Added()
    dyn = inserted(net, added)
    new = set(dyn.state_dict()) - set(net.state_dict())
    assert new == {f"dyn.added.first.{name}" for name in added.state_dict()}
    with torch.no_grad():
        dyn.get_parameter("dyn.added.first.mix.weight").zero_()
    assert bool((added.mix.weight != 0).any())


def test_inserted_network_follows_dtype_and_gets_gradients() -> None:
    dyn = inserted(Net(), Added()).double()
    dyn(torch.randn(3, 3, 10, 10).double()).sum().backward()
    weight = dyn.get_parameter("dyn.added.first.mix.weight")
    assert weight.dtype is torch.float64
    assert weight.grad is not None
    assert (
        inserted(Net().double(), Added()).get_parameter("dyn.added.first.mix.weight").dtype is torch.float64
    )


def test_inserted_network_is_typed_and_priced() -> None:
    dyn = inserted(Net(), Added())
    assert dyn.static_macs == 100 * (3 * 9 * 8) + 100 * 64 + 40
    assert {"stem.weight[0]"} == {name for name in dyn.facts.elastics_of("dyn.added.first.mix.weight")[1:]}


def test_a_pass_sees_inserted_networks() -> None:
    net, added = Net().eval(), Added().eval()
    program: Program = inserted(net, added).program
    passes = parse_specs("dsnet(gate=False, minimum=1, divisor=1)", {})
    sliced = DynamicModel(apply_passes(program, passes)).eval()
    x = torch.randn(3, 3, 10, 10)
    assert torch.equal(sliced.run(x, policy=dc.Full())[0], expected(net, added, x))
    route = sliced.route(0)
    assert float(sliced.macs(route)[0]) < sliced.static_macs
    static = dc.specialize(sliced, route)
    torch.testing.assert_close(static(x), sliced.run(x, policy=dc.Forced(route))[0])
    assert static.get_parameter("dyn.added.first.mix.weight").shape[0] < 8
