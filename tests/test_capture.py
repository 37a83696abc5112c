"""Capture: the dynamic model stands in for its source, call by call; what cannot be captured says why."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import dyncompile as dc
from dyncompile.capture import capture
from dyncompile.runtime.model import DynamicModel
from tests import handmade
from tests.nets import Cnn, Drop, Head, Inverted, Net, Plain, assemble, randomize
from tests.support import Make, Subject, leaves, same, snapshot, subject

ANY = (
    handmade.resnet,
    handmade.depthwise_se,
    handmade.shuffle,
    handmade.vit,
    handmade.bert_like,
    handmade.decoder,
    handmade.two_inputs,
    handmade.buffer_constant,
    handmade.dtype_literals,
)


def captured(make: Make) -> tuple[DynamicModel, nn.Module]:
    """A captured model without any choice, and an independent copy of its source."""
    one = subject(make)
    return copy.deepcopy(DynamicModel(one.program)).eval(), copy.deepcopy(one.module).eval()


def call(module: nn.Module, make: Make, convert: Callable[[Tensor], Tensor] = lambda t: t) -> Any:
    """Run a module on the example of a maker, floating inputs converted."""
    one = subject(make)
    args = [convert(value) if value.is_floating_point() else value for value in one.args]
    kwargs = {
        key: convert(value) if value.is_floating_point() else value for key, value in one.kwargs.items()
    }
    return module(*args, **kwargs)


def step(module: nn.Module, make: Make) -> dict[str, Tensor]:
    """One training step from a fixed seed: output, gradients, buffers."""
    torch.manual_seed(7)
    out = call(module, make)
    torch.stack([leaf.float().square().mean() for leaf in leaves(out)]).sum().backward()
    found = {f"out{i}": leaf.detach() for i, leaf in enumerate(leaves(out))}
    found |= {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    return found | {n: b for n, b in module.named_buffers() if not n.startswith("dyn.")}


# -- calling ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", ANY)
def test_evaluation_is_bitwise_the_source(make: Make) -> None:
    dyn, source = captured(make)
    with torch.no_grad():
        assert same(call(source, make), call(dyn, make))


@pytest.mark.parametrize("make", ANY)
def test_training_is_bitwise_the_source(make: Make) -> None:
    """Output, gradients and updated buffers, dropout included."""
    dyn, source = captured(make)
    expected, actual = step(source.train(), make), step(dyn.train(), make)
    assert expected.keys() == actual.keys()
    assert same(expected, actual)


@pytest.mark.parametrize(
    ("make", "rows"),
    [
        (handmade.resnet, 0),
        (handmade.resnet, 5),
        (handmade.vit, 0),
        (handmade.vit, 1),
        (handmade.bert_like, 1),
        (handmade.bert_like, 5),
        (handmade.decoder, 1),
    ],
)
def test_other_batch_sizes(make: Make, rows: int) -> None:
    dyn, source = captured(make)
    resize = lambda t: t.repeat(3, *[1] * (t.dim() - 1))[:rows]  # noqa: E731
    one = subject(make)
    args, kwargs = list(map(resize, one.args)), {k: resize(v) for k, v in one.kwargs.items()}
    with torch.no_grad():
        out = dyn(*args, **kwargs)
        assert out.shape[0] == rows
        assert same(source(*args, **kwargs), out)


@pytest.mark.parametrize("rows", [0, 1])
def test_examples_of_no_or_one_row_do_not_fix_the_batch(rows: int) -> None:
    module, example = handmade.plain_cnn()
    dyn = dc.dynamize(module.eval(), "dsnet(gate=False, divisor=1, minimum=1)", example[:rows])
    with torch.no_grad():
        assert torch.equal(module(example), dyn(example))


def test_arguments_by_position_and_by_name() -> None:
    dyn, source = captured(handmade.two_inputs)
    image, table = torch.randn(3, 3, 8, 8), torch.randn(3, 4)
    expected = source(image, table=table)
    assert torch.equal(expected, dyn(image, table=table))
    assert torch.equal(expected, dyn(table=table, image=image))
    assert torch.equal(expected, dyn(image, table=table, scale=None))


@pytest.mark.parametrize("kind", ["dict", "tuple", "named", "dataclass"])
def test_output_structure(kind: str) -> None:
    module, example = handmade.multi_output(kind)
    module.eval()
    dyn = DynamicModel(capture(module, (example,))).eval()
    expected, actual = module(example), dyn(example)
    assert type(actual) is type(expected)
    assert same(expected, actual)
    if kind == "dataclass":
        assert torch.equal(actual.logits, expected.logits)
        assert len(actual.features) == 2


class Flagged(nn.Module):
    """Takes a number, a flag and a list of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, more: list[Tensor], power: int = 1, flag: bool = False) -> Tensor:
        y = F.relu(self.layer(x)) ** power
        return self.other(y + sum(more)) if flag else self.other(y)


def test_constants_and_containers_among_the_arguments() -> None:
    module, x = Flagged(), torch.randn(2, 4)
    more = [torch.randn(2, 1), torch.randn(2, 1)]
    example = {"x": x, "more": more, "power": 2, "flag": True}
    dyn = dc.dynamize(module, "dsnet(gate=False, divisor=1, minimum=1)", example)
    assert torch.equal(module(x, more, 2, flag=True), dyn(x, more, 2, flag=True))
    with pytest.raises(dc.InputError, match="power was captured as 2, got 3"):
        dyn(x, more, 3, flag=True)
    with pytest.raises(dc.InputError, match="does not have the structure that was captured"):
        dyn(x, more, flag=True)
    with pytest.raises(dc.InputError, match="does not have the structure that was captured"):
        dyn(x, more[:1], 2, flag=True)


class Open(nn.Module):
    """Takes further tensors at any position, and by any name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, *rest: Tensor, **named: Any) -> Tensor:
        y = self.layer(sum(rest, x)).relu()
        return self.other(y * named["scale"] if "scale" in named else y) + sum(named.get("more", ()))


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((torch.ones(2, 4), torch.randn(2, 4)), {}),
        ((torch.ones(2, 4),), {"scale": torch.randn(2, 1)}),
        ((torch.ones(2, 4), torch.ones(2, 4)), {"scale": torch.randn(2, 1), "more": [torch.ones(2, 3)] * 2}),
        ((), {"x": torch.ones(2, 4), "more": [torch.randn(2, 3)]}),
    ],
)
def test_open_ended_arguments(args: tuple[Tensor, ...], kwargs: dict[str, Any], tmp_path: Path) -> None:
    module = Open()
    dyn = Subject(module, args, kwargs).dynamic()
    more = pytree.tree_map(lambda t: torch.cat([t, t, t]), (args, dict(reversed(kwargs.items()))))
    for given, named in ((args, kwargs), more):
        for training in (True, False):
            expected = module.train(training)(*given, **named)
            assert torch.equal(expected, dyn.train(training).run(*given, **named, policy=dc.Full())[0])
    loaded = dc.load(dc.save(dyn, tmp_path))
    assert torch.equal(module(*args, **kwargs), loaded.run(*args, **kwargs, policy=dc.Full())[0])
    with pytest.raises(dc.InputError, match="structure that was captured"):
        dyn(*args, **kwargs, unknown=torch.ones(2))


# -- state ------------------------------------------------------------------------------------------


def test_names_and_shapes_of_state_are_the_sources() -> None:
    for make in ANY:
        dyn, source = captured(make)
        expected = {name: tensor.shape for name, tensor in source.state_dict().items()}
        assert {name: tensor.shape for name, tensor in dyn.state_dict().items()} == expected
        assert [n for n, _ in dyn.named_parameters()] == [n for n, _ in source.named_parameters()]


def test_constants_are_buffers_that_are_not_saved() -> None:
    dyn, _ = captured(handmade.buffer_constant)
    constants = {name for name, _ in dyn.named_buffers() if name.startswith("dyn.constants.")}
    assert len(constants) == 2
    assert not constants & set(dyn.state_dict())
    assert all(b.dtype is torch.float64 for _, b in dyn.double().named_buffers() if b.is_floating_point())


def test_state_round_trips_through_the_source() -> None:
    dyn, source = captured(handmade.resnet)
    with torch.no_grad():
        for parameter in dyn.parameters():
            parameter.add_(torch.randn_like(parameter))
    source.load_state_dict(dyn.state_dict())
    assert same(call(source, handmade.resnet), call(dyn, handmade.resnet))
    fresh, _ = captured(handmade.resnet)
    fresh.load_state_dict(source.state_dict())
    assert same(call(source, handmade.resnet), call(fresh, handmade.resnet))


def test_deepcopy_is_independent() -> None:
    dyn = subject(handmade.resnet).dynamic("dsnet(gate=False, divisor=1, minimum=1)").train()
    dyn.policy = dc.Sampled(3)
    twin = copy.deepcopy(dyn)
    assert (twin.training, twin.policy) == (True, dc.Sampled(3))
    before = snapshot(dyn)
    optimizer = torch.optim.SGD(twin.parameters(), 0.1)
    x = torch.randn(4, 3, 8, 8)
    for policy in (dc.Full(), dc.Smallest()):
        twin.run(x, policy=policy)[0].sum().backward()
    optimizer.step()
    twin.eval()
    assert dyn.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in snapshot(dyn).items())
    assert all(p.grad is None for p in dyn.parameters())
    assert not same(snapshot(twin), before)


def test_tied_parameters_stay_tied() -> None:
    embed, head = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
    head.weight = embed.weight
    module = nn.Sequential(embed, nn.Linear(6, 6), head)
    dyn = DynamicModel(capture(module, (torch.randint(9, (2, 3)),)))
    assert len(list(dyn.parameters())) == 3
    for one in (dyn, copy.deepcopy(dyn), copy.deepcopy(dyn).double()):
        tied = dict(one.named_parameters(remove_duplicate=False))
        assert tied["0.weight"] is tied["2.weight"]


def test_frozen_parameters_stay_frozen() -> None:
    module, example = handmade.plain_cnn()
    module[0].requires_grad_(False)  # pyright: ignore[reportIndexIssue]
    dyn = dc.dynamize(module, "dsnet(gate=False, divisor=1, minimum=1)", example)
    frozen = {name for name, p in dyn.named_parameters() if not p.requires_grad}
    assert frozen == {"0.0.weight", "0.1.weight", "0.1.bias"}
    dyn.run(example, policy=dc.Smallest())[0].sum().backward()
    assert {name for name, p in dyn.named_parameters() if p.grad is None} == frozen


@pytest.mark.parametrize("make", [handmade.resnet, handmade.bert_like, handmade.buffer_constant])
def test_the_source_stays_as_it_was(make: Make) -> None:
    module, example = make()
    module.train()
    next(module.parameters()).grad = torch.ones_like(next(module.parameters()))
    before, modules = snapshot(module), [type(m) for m in module.modules()]
    spec = "dsnet(gate=False, divisor=1, minimum=1)"
    dyn = dc.dynamize(module, spec, example) if make is not handmade.buffer_constant else None
    DynamicModel(capture(module, *((example,), {}) if isinstance(example, Tensor) else ((), example)))
    assert same(snapshot(module), before)
    assert [type(m) for m in module.modules()] == modules
    assert [m.training for m in module.modules()] == [True] * len(modules)
    assert next(module.parameters()).grad is not None
    assert all(p.grad is None for p in list(module.parameters())[1:])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    if dyn is not None:
        assert dyn.training
        assert not {p.data_ptr() for p in dyn.parameters()} & {p.data_ptr() for p in module.parameters()}


class Caching(nn.Module):
    """Caches a tensor in evaluation, as LeViT does with its attention biases."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.offset = nn.Parameter(torch.randn(6))
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.head(self.layer(x) + self.offset.exp())
        if "offset" not in self.cache:
            self.cache["offset"] = self.offset.exp()
        return self.head(self.layer(x) + self.cache["offset"])

    def train(self, mode: bool = True) -> Caching:
        if mode:
            self.cache = {}
        return super().train(mode)


def test_tensors_that_the_source_caches_are_not_poisoned() -> None:
    module, x = Caching().eval(), torch.randn(2, 4)
    with torch.no_grad():
        expected = module(x)
    dyn = dc.dynamize(module, "dsnet(gate=False, divisor=1, minimum=1)", x)
    with torch.no_grad():
        assert torch.equal(module(x), expected)
        assert torch.equal(dyn(x), expected)
        dyn.get_parameter("offset").add_(1)
        module.offset.add_(1)
        assert torch.equal(dyn(x), module.train().eval()(x))


# -- modes ------------------------------------------------------------------------------------------


def test_train_and_eval_choose_the_graph() -> None:
    spec = Cnn(Plain(6), (Inverted(6, attention="none", drop=0.3), Drop(0.4)), Head(3, drop=0.2))
    net: Net = assemble(spec, seed=1)
    dyn = DynamicModel(capture(net.module, net.args)).train()
    x = torch.randn(6, 3, 8, 8)
    outputs: dict[bool, Tensor] = {}
    for training in (True, False, True):
        dyn.train(training)
        net.module.train(training)
        torch.manual_seed(3)
        expected = net.module(x)
        torch.manual_seed(3)
        outputs[training] = dyn(x)
        assert torch.equal(expected, outputs[training])
    assert not torch.equal(outputs[True], outputs[False])
    assert same(dict(net.module.named_buffers()), dict(dyn.named_buffers()))


def test_gradient_accumulation() -> None:
    dyn, source = captured(handmade.resnet)
    for module in (dyn, source):
        module.train()
    for seed in range(3):
        x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        for module in (dyn, source):
            (module(x).square().mean() / 3).backward()
    assert same(
        {n: p.grad for n, p in source.named_parameters()}, {n: p.grad for n, p in dyn.named_parameters()}
    )


# -- dtypes and devices -----------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("make", [handmade.resnet, handmade.vit, handmade.bert_like, handmade.decoder])
def test_autocast_is_bitwise_the_source(make: Make, training: bool) -> None:
    dyn, source = captured(make)
    for module in (dyn, source):
        module.train(training)
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = step(source, make), step(dyn, make)
    assert same(expected, actual)
    assert expected["out0"].dtype is torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("make", [make for make in ANY if make is not handmade.buffer_constant])
def test_dtypes_follow(make: Make, dtype: torch.dtype) -> None:
    """Explicit upcasts stay, dtypes taken from a tensor follow: as in the source, converted the same way."""
    dyn, source = (module.to(dtype) for module in captured(make))
    with torch.no_grad():
        expected = call(source, make, lambda t: t.to(dtype))
        actual = call(dyn, make, lambda t: t.to(dtype))
    assert same(expected, actual)


@pytest.mark.parametrize(
    "make", [handmade.buffer_constant, handmade.bert_like, handmade.decoder, handmade.dtype_literals]
)
@pytest.mark.parametrize("training", [False, True])
def test_devices_follow(make: Make, training: bool) -> None:
    """Tensors made in forward are made where the model is; the meta device stands in for an accelerator."""
    dyn, _ = captured(make)
    dyn.to("meta").train(training)
    one = subject(make)
    out = dyn(*(t.to("meta") for t in one.args), **{key: t.to("meta") for key, t in one.kwargs.items()})
    assert out.device.type == "meta"
    assert out.shape == one.expected().shape


class Residual(nn.Module):
    """Looks at its stream in float32 and goes on with the stream itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        scale = x.float().square().mean(-1, keepdim=True).rsqrt()
        x = x + self.b((x.to(torch.float32) * scale).to(x.dtype))
        return self.head(x.type(torch.float32).softmax(-1).type_as(x) * x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("training", [False, True])
def test_a_conversion_is_not_taken_for_what_it_converts(dtype: torch.dtype, training: bool) -> None:
    """At the traced dtype ``x.float()`` is `x` itself; in the graph they must not be one."""
    module, x = Residual(), torch.randn(2, 4)
    dyn = DynamicModel(capture(module, (x,))).to(dtype).train(training)
    module.to(dtype).train(training)
    outputs = [one(x.to(dtype)) for one in (module, dyn)]
    for out in outputs:
        out.sum().backward()
    assert same(outputs[0], outputs[1])
    assert same([p.grad for p in module.parameters()], [p.grad for p in dyn.parameters()])


class Regions(nn.Module):
    """A part without gradients and a part that leaves autocast, as rotary embeddings do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            angles = self.a(x).cos()
        with torch.autocast("cpu", enabled=False):
            y = self.b(x.float()) * angles.float()
        return self.head(y)


@pytest.mark.parametrize("autocast", [False, True])
def test_regions_without_gradients_or_autocast(autocast: bool) -> None:
    module, x = Regions(), torch.randn(2, 4)
    dyn = dc.dynamize(module, "dsnet(gate=False, divisor=1, minimum=1)", x)
    outputs = []
    for one in (module, dyn):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs.append(one(x))
        outputs[-1].float().sum().backward()
    assert same(outputs[0], outputs[1])
    grads = {n: p.grad for n, p in dyn.named_parameters()}
    assert grads["a.weight"] is None
    assert same([p.grad for p in module.parameters()], list(grads.values()))


# -- what cannot be captured ------------------------------------------------------------------------


def rejected(module: nn.Module, example: Any, *wanted: str) -> None:
    """`dynamize` raises CaptureError with all of these texts, and the model stays as it was."""
    training = module.training
    with pytest.raises(dc.CaptureError) as caught:
        dc.dynamize(module, "dsnet", example)
    for text in wanted:
        assert text in str(caught.value)
    assert "\n  do: " in str(caught.value)
    assert module.training == training


def test_branches_on_data_name_the_line() -> None:
    module, example = handmade.control_flow()
    rejected(
        module, example, "branches on the values of a tensor", "special.py:", "if x.sum() > 0:", "torch.where"
    )


def test_models_without_parameters() -> None:
    rejected(*handmade.no_parameters(), "has no parameters")


def test_scripted_models() -> None:
    module, example = handmade.plain_cnn()
    rejected(torch.jit.script(module), example, "is a scripted module", "pass the eager module")


def test_compiled_models() -> None:
    module, example = handmade.plain_cnn()
    compiled = torch.compile(module, backend="eager")
    assert isinstance(compiled, nn.Module)
    rejected(compiled, example, "is already compiled", "model._orig_mod")


def test_models_that_were_compiled_in_place() -> None:
    """Their copy is a plain module again."""
    module, example = handmade.plain_cnn()
    module.eval().compile(backend="eager")
    dyn = dc.dynamize(module, "dsnet(gate=False, divisor=1, minimum=1)", example)
    assert torch.equal(dyn(example), subject(handmade.plain_cnn).module(example))


def test_wrapped_models() -> None:
    module, example = handmade.plain_cnn()
    rejected(nn.DataParallel(module), example, "is wrapped in DataParallel", "pass model.module")


def test_models_that_cannot_be_copied() -> None:
    module, example = handmade.plain_cnn()
    setattr(module, "lock", threading.Lock())  # noqa: B010
    rejected(module, example, "the model cannot be copied: TypeError", "lock")


class Fixed(nn.Module):
    """Writes its batch size down."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).view(2, 2, 3)


def test_models_that_fix_their_batch_size() -> None:
    rejected(Fixed(), torch.randn(2, 4), "fixes its batch size", "x.shape[0]")


@pytest.mark.parametrize(
    ("example", "wanted"),
    [
        (torch.randn(2, 4, 8, 8), ["cannot be traced", "channels", "convolutional.py"]),
        (torch.randn(2, 3), ["cannot be traced", "check that model(*example_inputs) runs"]),
        (torch.randint(9, (2, 3, 8, 8)), ["does not take inputs of dtype int64", "parameters are float32"]),
        (torch.randn(2, 3, 8, 8).double(), ["does not take inputs of dtype float64"]),
        (torch.tensor(1.0), ["hold no tensor with a batch axis"]),
        ((), ["forward"]),
        ({"y": torch.randn(2, 3, 8, 8)}, ["forward"]),
        (
            torch.randn(2, 3, 8, 8).to("meta"),
            ["the model is on cpu, an example input on meta", "move the example inputs to cpu"],
        ),
    ],
)
def test_examples_that_do_not_fit(example: Any, wanted: list[str]) -> None:
    module, _ = handmade.resnet()
    before = snapshot(module)
    with pytest.raises((dc.CaptureError, dc.InputError)) as caught:
        dc.dynamize(module, "dsnet", example)
    for text in wanted:
        assert text in str(caught.value)
    assert same(snapshot(module), before)


def test_models_on_several_devices() -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3).to("meta"))
    rejected(module, torch.randn(2, 4), "spread over several devices: ['cpu', 'meta']")


# -- inputs that do not fit what was captured -------------------------------------------------------


IMAGE, TABLE = torch.zeros(2, 3, 8, 8), torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((IMAGE[:, :, 1:],), {"table": TABLE}, "image must have shape Bx3x8x8, got 2x3x7x8"),
        ((IMAGE[0],), {"table": TABLE}, "image must have shape Bx3x8x8, got 3x8x8"),
        ((IMAGE.long(),), {"table": TABLE}, "image must be torch.float32, got torch.int64"),
        ((IMAGE,), {"table": [1.0]}, "does not have the structure that was captured"),
        ((IMAGE,), {"table": 1.0}, "table must be a tensor, got float"),
        ((IMAGE,), {"table": TABLE[:1]}, r"disagree on the batch size: \{'image': 2, 'table': 1\}"),
        ((IMAGE,), {}, "missing a required"),
        ((IMAGE, IMAGE), {"table": TABLE}, "too many positional arguments"),
        ((IMAGE,), {"tabel": TABLE}, "missing a required"),
        ((IMAGE,), {"table": TABLE, "tabel": TABLE}, "unexpected keyword argument 'tabel'"),
        ((IMAGE,), {"table": TABLE, "scale": TABLE}, "the structure that was captured"),
    ],
)
def test_calls_that_do_not_fit(args: Any, kwargs: Any, message: str) -> None:
    dyn, _ = captured(handmade.two_inputs)
    with pytest.raises(dc.InputError, match=message):
        dyn(*args, **kwargs)


def test_all_misfits_are_named_at_once() -> None:
    dyn, _ = captured(handmade.two_inputs)
    with pytest.raises(dc.InputError) as caught:
        dyn(torch.randn(2, 4, 8, 8), table=torch.randn(2, 5))
    assert "image must have shape" in str(caught.value)
    assert "table must have shape" in str(caught.value)


def test_an_argument_outside_of_the_capture_is_refused_not_ignored() -> None:
    module = randomize(nn.Linear(4, 3))
    dyn = DynamicModel(capture(module, (torch.randn(2, 4),)))
    with pytest.raises(dc.InputError, match="the call does not fit"):
        dyn(torch.randn(2, 4), scale=2)
