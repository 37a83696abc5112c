"""Specialized networks are plain: narrow, static, on their own, called as the source is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import dyncompile as dc
from dyncompile.program import Mode
from dyncompile.runtime import ops
from dyncompile.runtime.model import DynamicModel
from tests import handmade
from tests.nets import randomize
from tests.support import ALL, FINE, Make, leaves, relative, same, snapshot, subject
from tests.test_basis import mixed_net

NETS = (
    handmade.resnet,
    handmade.grouped,
    handmade.depthwise_se,
    handmade.dense,
    handmade.shuffle,
    handmade.vit,
    handmade.bert_like,
    handmade.decoder,
    handmade.flatten_cnn,
    handmade.two_inputs,
    handmade.dtype_literals,
)
INSERTED = {ops.decide, ops.extent, ops.prefix, ops.positions, ops.take, ops.pick, ops.put}


def run(module: nn.Module, make: Make) -> Any:
    with torch.no_grad():
        return module(*subject(make).args, **subject(make).kwargs)


def narrow(make: Make, column: int = 1, **fields: Any) -> tuple[DynamicModel, fx.GraphModule]:
    dyn = subject(make).dynamic(f"dsnet({FINE}, embedding=True)", **fields)
    return dyn, dc.specialize(dyn, dyn.route(column))


@pytest.mark.parametrize("make", NETS)
def test_nothing_dynamic_is_left(make: Make) -> None:
    dyn, static = narrow(make)
    nodes = list(static.graph.nodes)
    assert not INSERTED & {node.target for node in nodes}
    inputs = [node.target for node in nodes if node.op == "placeholder"]
    assert len(inputs) == len(subject(make).flat)
    assert "policy" not in inputs
    buffers = {name for name, _ in dyn.named_buffers()}
    transient = buffers - set(dyn.state_dict())
    assert set(static.state_dict()) <= set(dyn.state_dict())
    assert {name for name, _ in static.named_buffers()} & transient <= buffers
    total = sum(p.numel() for p in static.parameters())
    assert total < sum(p.numel() for p in subject(make).module.parameters())
    widths = {name: sized.sizes[1] for name, sized in dyn.program.sized.items()}
    assert total == dyn.facts.narrowed_numel(widths)
    assert all(tensor.is_contiguous() for tensor in static.state_dict().values())


@pytest.mark.parametrize("make", NETS)
def test_sizes_are_numbers(make: Make) -> None:
    """Nodes that compute a size read the batch; all other sizes are literals."""
    _, static = narrow(make)
    arithmetic = [n for n in static.graph.nodes if getattr(n.target, "__module__", "") == "_operator"]
    batch = torch.ops.aten.sym_size.int
    scalars = [n for n in arithmetic if n.target.__name__ in ("mul", "add")]
    assert all(any(operand.target is batch for operand in node.all_input_nodes) for node in scalars)
    assert all(node.args[1] == 0 for node in static.graph.nodes if node.target is batch)


@pytest.mark.parametrize("make", NETS)
def test_the_full_route_is_the_source(make: Make) -> None:
    dyn = subject(make).dynamic(ALL)
    static = dc.specialize(dyn, dyn.route(3))
    assert same(subject(make).expected(), run(static, make))
    assert same(run(static, make), run(dc.specialize(dyn, {}), make))
    assert {n: t.shape for n, t in static.state_dict().items() if t.dim()} == {
        n: t.shape for n, t in subject(make).module.state_dict().items() if t.dim()
    }


@pytest.mark.parametrize("make", [handmade.resnet, handmade.vit, handmade.bert_like])
def test_torch_export_takes_it_at_any_batch(make: Make) -> None:
    _, static = narrow(make)
    one = subject(make)
    dynamic = {key: {0: torch.export.Dim.DYNAMIC} for key in one.program.signature.captured_names}
    program = torch.export.export(static, one.args, one.kwargs, dynamic_shapes=dynamic, strict=False)
    args = [torch.cat([v, v[:1]]) for v in one.args]
    kwargs = {key: torch.cat([v, v[:1]]) for key, v in one.kwargs.items()}
    assert relative(static(*args, **kwargs), program.module()(*args, **kwargs)) <= 1e-6


def test_torch_compile_takes_it() -> None:
    """Traced in one piece; the eager backend runs what dynamo found."""
    _, static = narrow(handmade.vit)
    compiled = torch.compile(static, backend="eager", fullgraph=True)
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        assert relative(static(x), compiled(x)) <= 1e-6


def test_calling_conventions() -> None:
    _, static = narrow(handmade.two_inputs)
    image, table = torch.randn(3, 3, 8, 8), torch.randn(3, 4)
    assert torch.equal(static(image, table), static(table=table, image=image))
    assert torch.equal(static(image, table), static(image, table=table))


@pytest.mark.parametrize("kind", ["dict", "tuple", "named", "dataclass"])
def test_output_structure(kind: str) -> None:
    module, example = handmade.multi_output(kind)
    module.eval()
    wide = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 3, 1), module).eval()
    static = dc.specialize(dyn := dc.dynamize(wide, ALL, example), dyn.route(0))
    expected, _ = dyn.run(example, policy=dc.Smallest())
    actual = static(example)
    assert type(actual) is type(expected) is type(module(example))
    assert relative(expected, actual) <= 1e-6


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, times: int, shift: Tensor | None = None) -> Tensor:
        y = self.second(self.first(x).relu()) * times
        return y if shift is None else y + shift


def test_constants_of_the_call_are_no_inputs_any_more() -> None:
    x, shift = torch.randn(2, 4), torch.randn(2, 3)
    dyn = dc.dynamize(Scaled().eval(), ALL, {"x": x, "times": 2, "shift": shift})
    static = dc.specialize(dyn, dyn.route(1))
    expected, _ = dyn.run(x, 2, shift, policy=dc.Forced(dyn.route(1)))
    assert relative(expected, static(x, shift=shift)) <= 1e-6
    assert torch.equal(static(x, shift), static(x, shift=shift))


# -- independence -----------------------------------------------------------------------------------


def test_training_it_leaves_the_dynamic_model_as_it_is_and_the_other_way_round() -> None:
    dyn, _ = narrow(handmade.resnet)
    static = dc.specialize(dyn, dyn.route(1), mode="train")
    before, inside = snapshot(dyn), snapshot(static)
    x = torch.randn(4, 3, 8, 8)
    optimizer = torch.optim.SGD(static.parameters(), 0.1)
    static(x).square().sum().backward()
    optimizer.step()
    assert same(snapshot(dyn), before)
    changed = {name for name, tensor in snapshot(static).items() if not torch.equal(tensor, inside[name])}
    assert changed == set(inside)
    after = snapshot(static)
    with torch.no_grad():
        for parameter in dyn.parameters():
            parameter.zero_()
    dyn.train().run(x, policy=dc.Forced(dyn.route(1)))
    assert same(snapshot(static), after)


@pytest.mark.parametrize("make", [handmade.resnet, handmade.bert_like])
def test_the_training_graph_trains_alike(make: Make) -> None:
    """Output, gradients and statistics of one step from the same seed, dropout included."""
    dyn = subject(make).dynamic(ALL).train()
    static = dc.specialize(dyn, dyn.route(1), mode="train")
    assert static.training
    one = subject(make)
    torch.manual_seed(5)
    expected, _ = dyn.run(*one.args, policy=dc.Forced(dyn.route(1)), **one.kwargs)
    torch.manual_seed(5)
    actual = static(*one.args, **one.kwargs)
    assert relative(expected, actual) <= 1e-5
    for out in (expected, actual):
        leaves(out)[0].square().sum().backward()
    found = {name: p.grad for name, p in static.named_parameters()}
    for name, parameter in dyn.named_parameters():
        grad, own = parameter.grad, found[name]
        assert grad is not None
        assert own is not None
        assert float(grad.sum()) == pytest.approx(float(own.sum()), rel=1e-3, abs=1e-4), name
    private = {
        n.split(".1.", 1)[1]: b for n, b in dyn.named_buffers() if n.startswith("dyn.statistics.width.1.")
    }
    buffers = dict(static.named_buffers())
    assert all(relative(b, buffers[n]) <= 1e-5 for n, b in private.items())


def test_modes_are_chosen_once() -> None:
    dyn, static = narrow(handmade.resnet)
    assert not static.training
    assert torch.equal(run(static, handmade.resnet), run(static.train(), handmade.resnet))
    again = dc.specialize(dyn.train(), dyn.route(1))
    assert not again.training
    assert torch.equal(run(again, handmade.resnet), run(static, handmade.resnet))


def test_tied_parameters_stay_one() -> None:
    embed, head = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
    head.weight = embed.weight
    module = nn.Sequential(embed, nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 6), head).eval()
    ids = torch.randint(9, (2, 3))
    dyn = dc.dynamize(module, f"dsnet({FINE}, per=dim)", ids)
    route = dyn.route(1)
    static = dc.specialize(dyn, route)
    assert len(list(static.parameters())) == 5
    assert relative(dyn.run(ids, policy=dc.Forced(route))[0], static(ids)) <= 1e-6


def test_frozen_parameters_stay_frozen() -> None:
    module, example = handmade.plain_cnn()
    module[0].requires_grad_(False)  # pyright: ignore[reportIndexIssue]
    dyn = dc.dynamize(module, ALL, example)
    static = dc.specialize(dyn, dyn.route(1))
    assert {n: p.requires_grad for n, p in static.named_parameters()} == {
        n: p.requires_grad for n, p in module.named_parameters()
    }


def test_copies_and_dtypes() -> None:
    dyn, static = narrow(handmade.dtype_literals)
    x = subject(handmade.dtype_literals).args[0].double()
    twin = copy.deepcopy(static).double()
    assert static(x.float()).dtype is torch.float32
    assert relative(dyn.double().run(x, policy=dc.Forced(dyn.route(1)))[0], twin(x)) <= 1e-12
    assert same(dc.specialize(dyn, dyn.route(1)).state_dict(), twin.state_dict())


# -- dead dims --------------------------------------------------------------------------------------


class Unread(nn.Module):
    """Ten channels of which the last four are never read; a norm in between if `normed`."""

    def __init__(self, normed: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10) if normed else nn.Identity()
        self.middle, self.head = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))[:, :6].mean((2, 3))
        return self.head(self.middle(y).relu())


def test_channels_that_nobody_reads_are_left_out() -> None:
    module, x = Unread(normed=False).eval(), torch.randn(2, 3, 5, 5)
    dyn = dc.dynamize(module, ALL, x)
    assert dyn.facts.dead == {"conv.weight[0].1"}
    dc.verify(dyn, module, x)
    for column, kept in ((1, 3), (3, 6)):
        static = dc.specialize(dyn, dyn.route(column))
        assert static.get_parameter("conv.weight").shape == (kept, 3, 3, 3)
        assert static.get_parameter("conv.bias").shape == (kept,)
        assert relative(dyn.run(x, policy=dc.Forced(dyn.route(column)))[0], static(x)) <= 1e-6
    assert relative(module(x), dc.specialize(dyn, {})(x)) <= 1e-6


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("include", ["conv", "middle", ""])
def test_dead_channels_under_a_norm_with_private_statistics(include: str, mode: Mode) -> None:
    module, x = randomize(Unread(normed=True)).train(mode == "train"), torch.randn(4, 3, 5, 5)
    dyn = dc.dynamize(module, f"dsnet({FINE}, include={include!r})", x)
    expected, _ = dyn.run(x, policy=dc.Forced(dyn.route(1)))
    static = dc.specialize(dyn, dyn.route(1), mode=mode)
    assert relative(expected, static(x)) <= 1e-5
    dc.verify(dyn, module, x)


# -- routes -----------------------------------------------------------------------------------------


def test_a_static_network_is_one_route() -> None:
    dyn, _ = narrow(handmade.plain_cnn)
    with pytest.raises(dc.RouteError, match="the route holds 2 different rows, a static network has one"):
        dc.specialize(dyn, {"width": torch.eye(4)[[0, 1, 0]]})
    static = dc.specialize(dyn, {"width": torch.eye(4)[[1, 1, 1]]})
    assert same(run(static, handmade.plain_cnn), run(narrow(handmade.plain_cnn)[1], handmade.plain_cnn))


def test_rows_outside_of_the_domain() -> None:
    dyn, _ = narrow(handmade.plain_cnn)
    with pytest.raises(dc.RouteError, match="outside its domain"):
        dc.specialize(dyn, {"width": torch.full((1, 4), 0.25)})


def test_choices_that_a_route_leaves_out_run_in_full() -> None:
    dyn = subject(handmade.resnet).dynamic(f"dsnet({FINE}, per=stage)")
    first, _ = dyn.choices
    static = dc.specialize(dyn, {first: torch.eye(4)[:1]})
    shapes = {name: tuple(t.shape) for name, t in static.state_dict().items()}
    assert shapes["stage1.0.conv1.0.weight"] == (2, 2, 3, 3)
    assert shapes["stage2.0.conv1.0.weight"] == (16, 2, 3, 3)
    assert shapes["stage2.1.conv2.0.weight"] == (16, 16, 3, 3)


class Precise(nn.Module):
    """Convolutions in one dtype, and a scale in another, which is registered first."""

    def __init__(self, first: torch.dtype, others: torch.dtype) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.3, dtype=first))
        self.convs = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()).to(others)
        self.head = nn.Linear(8, 5, dtype=others)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 5]."""
        return self.head(self.convs(x).mean((2, 3))).float() * self.scale


@pytest.mark.parametrize("later", [None, torch.float64])
@pytest.mark.parametrize(
    ("first", "others"),
    [
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float32),
        (torch.float32, torch.float32),
    ],
)
@torch.no_grad()
def test_gains_have_the_dtype_of_what_they_scale(
    first: torch.dtype, others: torch.dtype, later: torch.dtype | None
) -> None:
    """`later` is what the whole model is cast to after capture."""
    x = torch.randn(2, 3, 8, 8, dtype=others)
    dyn = dc.dynamize(Precise(first, others).eval(), "lcnet(layers=False)", x).eval()
    if later is not None:
        dyn, x = dyn.to(later), x.to(later)
    route = {name: torch.rand(1, one.width) * 0.5 + 0.25 for name, one in dyn.choices.items()}
    static = dc.specialize(dyn, route)
    assert torch.equal(
        static(x), dyn.run(x, policy=dc.Forced({n: r.expand(2, -1) for n, r in route.items()}))[0]
    )


@torch.no_grad()
def test_kernels_are_folded_as_without_autocast() -> None:
    _, dyn = mixed_net("basisnet(exit=False)")
    route, x = {"basis": torch.rand(1, 12)}, torch.randn(2, 3, 12, 12)
    expected = dc.specialize(dyn, route)
    with torch.autocast("cpu", torch.bfloat16):
        static = dc.specialize(dyn, route)
    assert torch.equal(static(x), expected(x))
