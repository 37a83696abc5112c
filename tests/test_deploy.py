"""Deployed models: norms folded, no gradients, the same routes and outputs, any batch, several threads."""

from __future__ import annotations

import resource
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import dyncompile as dc
from dyncompile.deploy import deployed, regions
from dyncompile.deploy.buckets import upward
from dyncompile.deploy.fold import fold_some
from dyncompile.errors import DyncompileError, SpecError
from dyncompile.program import Choice
from dyncompile.runtime import ops
from dyncompile.runtime.compiled import bind_graph
from dyncompile.runtime.model import DynamicModel
from dyncompile.runtime.steering import decision_of
from dyncompile.state import state_tensors
from tests import handmade
from tests.nets import Net, networks
from tests.support import FINE, Make, relative, snapshot, subject, subject_of, undecided

NORM = torch.ops.aten.batch_norm.default
HALVES = "dsnet(divisor=1, minimum=1, ratios=(0.5, 1.0))"
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
    (handmade.vit, "dsnet(ratios=(1, 1), depth=(0.5, 1))"),
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


@pytest.mark.parametrize(
    "arguments", [{"backend": "tensorrt"}, {"memory": "none"}, {"max_buckets": 0}, {"max_graphs": 0}]
)
def test_what_is_no_argument_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"no backend|no memory|at least 1"):
        dc.deploy(made(handmade.resnet, "lcnet"), **arguments)


@pytest.mark.parametrize("asked_first", [True, False])
def test_asking_a_tensor_for_its_dtype_gives_it_no_name(asked_first: bool) -> None:
    """Wherever the question stands, what is narrowed keeps the source's name and is the only tensor."""
    graph = fx.Graph()
    policy, x, weight = graph.placeholder("policy"), graph.placeholder("x"), graph.get_attr("weight")
    weight.meta["val"] = torch.ones(4)
    decision = graph.call_function(ops.decide, (policy, "width"))
    parts: dict[str, fx.Node] = {}

    def ask() -> None:
        parts["dtype"] = graph.call_function(getattr, (weight, "dtype"))

    def narrow() -> None:
        parts["size"] = graph.call_function(ops.extent, (decision, (2, 4)))
        parts["part"] = graph.call_function(ops.prefix, (weight, (parts["size"],)))

    for step in (ask, narrow) if asked_first else (narrow, ask):
        step()
    cast = graph.call_function(torch.ops.aten.to.dtype, (x, parts["dtype"]))
    graph.output((graph.call_function(torch.ops.aten.mul.Tensor, (cast, parts["part"])),))
    whole = torch.arange(4.0)
    found = fold_some(graph, {"width": decision_of(torch.tensor([[1.0, 0.0]]))}, {"weight": whole}, {})
    assert {name: tensor.tolist() for name, tensor in found.state.items()} == {"weight": [0.0, 1.0]}
    (output,) = bind_graph(found.graph, "test", found.state)(torch.tensor([3.0, 4.0], dtype=torch.float64))
    assert output.dtype == torch.float32
    assert output.tolist() == [0.0, 4.0]


# -- any routes ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(
    max_examples=4,
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.filter_too_much),
    phases=(Phase.explicit, Phase.generate),
)
@given(networks(), st.sampled_from((f"dsnet({FINE})", "lcnet(channels=False)")), st.integers(0, 99))
def test_any_routes_in_any_order_equal_static_networks(net: Net, method: str, seed: int) -> None:
    """Every row gets what a static network of its own route gives, wherever in the batch it stands."""
    try:
        dyn = subject_of(net).dynamic(method)
    except dc.NoSiteError:
        return
    args, kwargs = net.inputs(4, seed)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    route = dyn.run(*args, policy=dc.Sampled(seed, per_sample=True), **kwargs)[1]
    for memory in ("shared", "packed"):
        fast = dc.deploy(dyn, memory=memory)
        output = fast.run(*args, policy=dc.Forced(route), **kwargs)[0]
        for row in range(4):
            own = [x[row : row + 1] for x in args], {name: x[row : row + 1] for name, x in kwargs.items()}
            static = dc.specialize(dyn, {name: rows[row : row + 1] for name, rows in route.items()})
            assert relative(static(*own[0], **own[1]), output[row : row + 1]) < 1e-4
        moved = [x[order] for x in args], {name: x[order] for name, x in kwargs.items()}
        mixed = dc.Forced({name: rows[order] for name, rows in route.items()})
        assert relative(output[order], fast.run(*moved[0], policy=mixed, **moved[1])[0]) < 1e-5


@pytest.mark.parametrize("asks", [False, True])
def test_parts_that_met_again_leave_in_the_order_of_the_batch(asks: bool) -> None:
    """Rows part at one gate alone and go on together to the end, one part behind the other."""
    dyn = made(handmade.resnet, "dsnet(divisor=1, minimum=1, per=block)")
    (x,) = subject(handmade.resnet).args
    x = torch.cat([x, x.flip(2)])
    at = next(iter(dyn.choices))
    forced = {name: rows.repeat(len(x), 1) for name, rows in dyn.route(3).items()}
    forced[at] = torch.eye(4)[torch.arange(len(x)) * 3 % 4]
    policy = Told(forced) if asks else dc.Forced(forced)
    for model in (dyn, dc.deploy(dyn)):
        with torch.no_grad():
            whole = model.run(x, policy=policy)[0]
            rows = [{name: one[i : i + 1] for name, one in forced.items()} for i in range(len(x))]
            single = [model.run(x[i : i + 1], policy=dc.Forced(row))[0] for i, row in enumerate(rows)]
        assert relative(torch.cat(single), whole) < 1e-5


@dataclass(frozen=True)
class Told:
    """A forced route for rows that are asked for all together, by a policy that runs the decision nets."""

    reads_gates: ClassVar[bool] = True

    route: dc.Route

    def decide(self, choice: Choice, rows: int, logits: Tensor | None) -> Tensor:
        """The route's rows if these are all of them; the full one otherwise."""
        whole = self.route[choice.name]
        return whole if rows == len(whole) else torch.tensor([choice.full]).expand(rows, -1)


# -- memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [handmade.resnet, handmade.vit])
def test_packed_weights_give_the_same_and_say_what_they_take(make: Make) -> None:
    dyn = made(make, HALVES)
    (x,) = subject(make).args
    shared, packed = dc.deploy(dyn), dc.deploy(dyn, memory="packed")
    assert packed.packed_bytes == 0
    policies = (dc.Full(), dc.Smallest(), dc.Sampled(1, per_sample=True), dc.Learned())
    for policy in policies:
        assert relative(shared.run(x, policy=policy)[0], packed.run(x, policy=policy)[0]) < 1e-6
    assert shared.packed_bytes == 0
    static, whole = dc.specialize(shared, shared.route(0)), state_tensors(shared.program.state)
    copied = [
        tensor
        for name, tensor in snapshot(static).items()
        if tensor.shape != whole[name].shape and not leads(tensor, whole[name])
    ]  # what the only narrow column cannot have as a contiguous view
    assert packed.packed_bytes == sum(tensor.numel() * tensor.element_size() for tensor in copied)


def leads(tensor: Tensor, whole: Tensor) -> bool:
    """Whether a tensor is the first rows of another."""
    return tensor.shape[1:] == whole.shape[1:] and torch.equal(tensor, whole[: len(tensor)])


@pytest.mark.parametrize("make", [handmade.resnet, handmade.vit])
def test_shared_weights_are_views(make: Make) -> None:
    dyn = made(make, HALVES)
    tensors = state_tensors(dyn.program.state)
    own = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    decisions = {c.name: decision_of(torch.tensor([c.smallest])) for c in dyn.choices.values()}
    graph = dyn.program.graphs["eval"]
    found = fold_some(graph, decisions, tensors, {}, keeps_policy=True, gathers=True)
    floats = [tensor for tensor in found.state.values() if tensor.is_floating_point()]
    assert all(tensor.untyped_storage().data_ptr() in own for tensor in floats)
    assert any(tensor.numel() < tensor.untyped_storage().nbytes() // 4 for tensor in floats)


def test_weights_are_gathered_right_before_their_use() -> None:
    """A whole network's at once would be much new memory at every run."""
    dyn = made(handmade.vit, HALVES)
    decisions = {c.name: decision_of(torch.tensor([c.smallest])) for c in dyn.choices.values()}
    program = dyn.program
    tensors = state_tensors(program.state)
    found = fold_some(program.graphs["eval"], decisions, tensors, program.captured, gathers=True)
    order = list(found.graph.nodes)
    gathers = [node for node in order if node.target is torch.ops.aten.index_select.default]
    assert len(gathers) > 2
    for node in gathers:
        behind = order[order.index(node) + 1 :]
        assert next(one for one in behind if one not in gathers) in node.users


def test_new_weights_and_dtypes_reach_what_was_made() -> None:
    (x,) = subject(handmade.resnet).args
    fast = dc.deploy(made(handmade.resnet, HALVES), memory="packed")
    before = fast.run(x, policy=dc.Smallest())[0]
    fast.load_state_dict({name: value * 0.5 for name, value in fast.state_dict().items()})
    after = fast.run(x, policy=dc.Smallest())[0]
    assert relative(before, after) > 1e-2
    assert relative(dc.deploy(fast).run(x, policy=dc.Smallest())[0], after) < 1e-6
    assert relative(after, fast.double().run(x.double(), policy=dc.Smallest())[0]) < 1e-5


@pytest.mark.zoo
@pytest.mark.parametrize("memory", ["shared", "packed"])
def test_memory_stays_flat_over_many_batches(memory: Any) -> None:
    """10,000 batches of random sizes and routes; what the last one gives is what it gave at first."""
    (x,) = subject(handmade.resnet).args
    dyn = undecided(made(handmade.resnet, f"{SLICED}; lcnet(channels=False)"), (x,))
    fast, random = dc.deploy(dyn, memory=memory), torch.Generator().manual_seed(0)
    images = torch.randn(32, *x.shape[1:], generator=random)
    first, middle = fast(images), 0
    for step in range(10_000):
        rows = int(torch.randint(1, 9, (1,), generator=random))
        policy = dc.Learned() if step % 2 else dc.Sampled(step, per_sample=True)
        fast.run(images[torch.randint(32, (rows,), generator=random)], policy=policy)
        if step == 5_000:
            middle = resident()
    assert resident() - middle < 16 * 2**20
    assert torch.equal(fast(images), first)


def resident() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


# -- groups are moved up ------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(1, 6), st.integers(0, 20))
def test_groups_are_put_together_at_the_least_cost(counts: list[int], limit: int, fixed: int) -> None:
    def price(column: int, rows: int) -> float:
        return fixed + rows * (column + 1)

    def total(target: list[int]) -> float:
        groups = {top: sum(n for n, to in zip(counts, target, strict=True) if to == top) for top in target}
        return sum(price(top, rows) for top, rows in groups.items() if rows)

    def ways(column: int) -> list[list[int]]:
        if column == len(counts):
            return [[]]
        rest = ways(column + 1)
        return [[top, *one] for top in range(column, len(counts)) for one in rest]

    def groups(target: list[int]) -> int:
        return len({to for to, n in zip(target, counts, strict=True) if n})

    found = upward(counts, price, limit)
    assert all(to >= column for column, to in enumerate(found))
    assert groups(found) <= limit
    if len(counts) <= 5:
        allowed = [one for one in ways(0) if groups(one) <= limit]
        assert total(found) == min(map(total, allowed))


def test_fewer_groups_run_at_larger_widths() -> None:
    dyn = made(handmade.resnet, "dsnet(divisor=1, minimum=1)")
    (x,) = subject(handmade.resnet).args
    x = torch.cat([x] * 3)
    forced = dc.Forced({"width": dyn.route({"width": 0}, 1)["width"].repeat(len(x), 1)})
    columns = torch.arange(len(x)) % 4
    wide = {"width": torch.eye(4)[columns]}
    asked = dc.Forced(wide)
    assert torch.equal(dc.deploy(dyn).run(x, policy=asked)[1]["width"], wide["width"])
    fast = dc.deploy(dyn, max_buckets=2)
    output, route = fast.run(x, policy=asked)
    found = route["width"].argmax(1)
    assert len(set(found.tolist())) == 2
    assert bool((found >= columns).all())
    with torch.no_grad():
        assert relative(dyn.run(x, policy=dc.Forced(route))[0], output) < 1e-5
    assert torch.equal(fast.run(x, policy=forced)[1]["width"], forced.route["width"])
    launches = dc.deploy(dyn, cost=lambda choice, column, rows: 1.0)  # one group costs what any costs
    assert set(launches.run(x, policy=asked)[1]["width"].argmax(1).tolist()) == {3}


def test_rows_that_skip_a_branch_may_be_moved_into_it() -> None:
    (x,) = subject(handmade.resnet).args
    dyn = made(handmade.resnet, "lcnet(channels=False)")
    name = next(iter(dyn.choices))
    route = {name: torch.tensor([[0.5], *[[0.0]] * (len(x) - 1)])}
    output, found = dc.deploy(dyn, max_buckets=1).run(x, policy=dc.Forced(route))
    assert found[name].flatten().tolist() == [0.5, *[1.0] * (len(x) - 1)]
    with torch.no_grad():
        assert relative(dyn.run(x, policy=dc.Forced(found))[0], output) < 1e-5


# -- compiled -----------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[fx.GraphModule]:
    """Graphs that torch.compile would hand to its backend; they run as they are."""
    graphs: list[fx.GraphModule] = []

    def backend(graph: fx.GraphModule, _: list[Any]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    def compiled(function: Callable[..., Any]) -> Any:
        return torch.compile(function, fullgraph=True, backend=backend)

    monkeypatch.setattr(regions, "compiled", compiled)
    monkeypatch.setattr(deployed, "check_usable", lambda: None)
    return graphs


@pytest.mark.parametrize(
    ("make", "method"),
    [(handmade.resnet, HALVES), (handmade.resnet, "lcnet(channels=False)"), (handmade.vit, HALVES)],
)
def test_no_batch_compiles_anew(make: Make, method: str, counted: list[fx.GraphModule]) -> None:
    (x,) = subject(make).args
    x = torch.cat([x] * 3)
    dyn = undecided(made(make, method), (x,))
    fast = dc.deploy(dyn, backend="inductor")
    fast.warm_up(x)
    graphs = len(counted)
    assert graphs == fast.compiled_graphs > 0
    for rows in (1, 2, 3, 5, len(x), 0, 1):
        for policy in (dc.Full(), dc.Smallest(), dc.Learned()):
            with torch.no_grad():
                expected, route = dyn.run(x[:rows], policy=policy)
            output, taken = fast.run(x[:rows], policy=policy)
            assert output.shape == expected.shape
            assert not rows or relative(expected, output) < 1e-5
            assert all(torch.allclose(route[name], taken[name], atol=1e-4) for name in route)
    assert len(counted) == graphs


def test_a_limit_of_graphs_is_kept(counted: list[fx.GraphModule]) -> None:
    (x,) = subject(handmade.resnet).args
    dyn = made(handmade.resnet, HALVES)
    fast = dc.deploy(dyn, backend="inductor", max_graphs=2)
    fast.warm_up(x)
    assert len(counted) == fast.compiled_graphs == 2
    with torch.no_grad():
        expected = dyn.run(x, policy=dc.Smallest())[0]
    assert relative(expected, fast.run(x, policy=dc.Smallest())[0]) < 1e-5


def test_without_a_compiler_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: Callable[..., Any]) -> Any:
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr(regions, "compiled", broken)
    regions.check_usable.cache_clear()
    with pytest.raises(DyncompileError, match=r"no C\+\+ compiler found") as caught:
        dc.deploy(made(handmade.resnet, "lcnet"), backend="inductor")
    assert 'backend="eager"' in str(caught.value)


@pytest.mark.zoo
@pytest.mark.parametrize("memory", ["shared", "packed"])
def test_inductor_computes_the_same(memory: Any) -> None:
    (x,) = subject(handmade.resnet).args
    dyn = undecided(made(handmade.resnet, f"{HALVES}; lcnet(channels=False)"), (x,))
    fast = dc.deploy(dyn, backend="inductor", memory=memory)
    for rows in (1, 2, len(x)):
        for policy in (dc.Full(), dc.Learned(), dc.Smallest()):
            with torch.no_grad():
                expected = dyn.run(x[:rows], policy=policy)[0]
            assert relative(expected, fast.run(x[:rows], policy=policy)[0]) < 1e-4
