"""The shared contract of every method, alone and composed, on fixed, third-party and random networks.

A new method is picked up from the registry with its default configuration; `CONFIGURATIONS` adds more.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

import dyncompile as dc
from dyncompile import registry, zoo
from dyncompile.runtime.compiled import compile_graph
from dyncompile.verify import CHECKS, Check
from tests import handmade
from tests.nets import Net, networks
from tests.support import FINE, Make, Subject, example_of, subject

CONFIGURATIONS: Mapping[str, tuple[str, ...]] = {
    "dsnet": (
        f"dsnet({FINE})",
        f"dsnet({FINE}, per='stage', embedding=True)",
        f"dsnet({FINE}, per='dim', ratios=(0.3, 0.6, 1.0))",
    ),
    "lcnet": (),
    "routing": (),
    "basisnet": (),
    "exits": (),
    "resolution": (),
}
"""More than the default, per method. The default itself may leave a tiny network nothing to choose."""

DECIDING: Mapping[str, tuple[str, ...]] = {
    "dsnet": (
        "dsnet(divisor=1, minimum=1)",
        "dsnet(per='block', divisor=1, minimum=1, embedding=True, hidden=4)",
        "dsnet(per='stage', divisor=1, minimum=1)",
    ),
    "basisnet": (
        "basisnet(overhead=100.0)",
        "basisnet(overhead=100.0, preview=stage, activation=sigmoid, confidence=margin)",
        "basisnet(overhead=100.0, exit=False, shared=True, activation=free, step=0.01)",
    ),
    "exits": ("exits", "exits(at=(0.1, 0.5, 0.9), confidence=entropy)"),
    "lcnet": ("lcnet(channels=False)", "lcnet(bits=True, hidden=4, block=2)", "lcnet", "lcnet(layers=False)"),
    "routing": (
        "routing(candidates=('identity', 'lowrank'))",
        "routing(candidates=('narrow', 'separable3', 'lowrank'), top=1, per=connection, hidden=0)",
        "routing(connections=steps, candidates=('identity', 'narrow'))",
    ),
    "resolution": (),
}
"""Configurations with decision nets, per method."""

COMPOSED = [
    [f"dsnet({FINE}, include='fc1|mlp|conv1')", f"dsnet({FINE}, exclude='fc1|mlp|conv1', name='rest')"],
    [f"dsnet({FINE}, exclude='fc1|conv1', per='dim')", f"dsnet({FINE}, include='fc1|conv1', name='late')"],
    [
        "dsnet(divisor=1, minimum=1, include='fc1|mlp|conv1')",
        "dsnet(divisor=1, minimum=1, exclude='fc1|mlp|conv1', name='rest', per='block')",
    ],
    [
        "dsnet(divisor=1, minimum=1, include='fc1|mlp|conv1', per='block')",
        f"dsnet({FINE}, exclude='fc1|mlp|conv1', name='rest')",
    ],
    ["lcnet", f"dsnet({FINE}, embedding=True, per='stage', exclude='fc1|mlp|conv1')"],
    ["dsnet(divisor=1, minimum=1)", "lcnet"],
    ["routing(candidates=('identity', 'lowrank'))", "dsnet(divisor=1, minimum=1)"],
    ["dsnet(divisor=1, minimum=1)", "routing(candidates=('identity', 'lowrank'))"],
    ["lcnet(layers=False)", "routing(candidates=('identity', 'lowrank'))"],
    ["exits(at=(0.5,))", "basisnet(overhead=100.0)", f"dsnet({FINE}, per='dim', exclude='previews')"],
    ["dsnet(divisor=1, minimum=1)", "basisnet(overhead=100.0)", "lcnet(channels=False)", "exits"],
    [
        f"dsnet({FINE}, embedding=True, exclude='fc1|conv1')",
        "lcnet(channels=False, bits=True)",
        "lcnet(layers=False)",
    ],
]

FIXED: tuple[Make, ...] = (
    handmade.resnet,
    handmade.depthwise_se,
    handmade.grouped,
    handmade.dense,
    handmade.shuffle,
    handmade.vit,
    handmade.bert_like,
    handmade.decoder,
    handmade.unknown_op_vit,
    handmade.two_inputs,
)

WITHOUT_PLACE = (handmade.shuffle, handmade.two_inputs)
"""Networks in which no decision net can stand before what it would decide."""

THIRD_PARTY = (
    "timm:test_resnet",
    "timm:test_efficientnet",
    "timm:test_convnext",
    "timm:test_vit",
    "hf:BertForSequenceClassification?num_hidden_layers=1&hidden_size=64&num_attention_heads=4&intermediate_size=96&vocab_size=100",
    "hf:GPT2LMHeadModel?n_layer=1&n_embd=64&n_head=4&vocab_size=100",
    "hf:LlamaForCausalLM?num_hidden_layers=1&hidden_size=64&intermediate_size=96&num_attention_heads=4&num_key_value_heads=2&vocab_size=100",
)


WITHOUT_SCORES = (
    handmade.decoder.__name__,
    *(name for name in THIRD_PARTY if "LMHead" in name or "CausalLM" in name),
)
"""What gives no row of class scores per sample, so that nobody can leave early."""


WITHOUT_LAYERS = tuple(name for name in THIRD_PARTY if "GPT2" in name)
"""Transformers whose linear layers are `addmm`s: no weight of theirs is mixed."""

NOTHING_TO_DO = {
    "exits": WITHOUT_SCORES,
    "basisnet": WITHOUT_LAYERS,
    "routing": (handmade.dense.__name__,),
}
"""Networks by method. Routing: all positions of `dense` are pooled on the way from one value to the next."""


def fits(method: str, name: str) -> bool:
    """Whether a method has anything to do for a network."""
    return name not in NOTHING_TO_DO.get(method, ())


@pytest.mark.parametrize("make", [make for make in FIXED if not fits("exits", make.__name__)])
def test_networks_without_class_scores_say_so(make: Make) -> None:
    with pytest.raises(dc.NoSiteError, match="no row of class scores"):
        subject(make).dynamic("exits")


def pairs() -> list[tuple[Make, str]]:
    """Per method every network once, each with the method's next configuration."""
    turns = {method: CONFIGURATIONS.get(method, (method,)) for method in registry.methods()}
    found = [(make, turn[i % len(turn)]) for turn in turns.values() if turn for i, make in enumerate(FIXED)]
    able = [make for make in FIXED if make not in WITHOUT_PLACE]
    return found + [
        (make, turn[i % len(turn)])
        for method, turn in DECIDING.items()
        if turn
        for i, make in enumerate(able)
        if fits(method, make.__name__)
    ]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [("dsnet(divisor=1, minimum=1)", "before a gate could decide"), ("lcnet", "could read anything")],
)
@pytest.mark.parametrize("make", WITHOUT_PLACE)
def test_networks_without_a_place_for_a_decision_net_say_so(make: Make, spec: str, reason: str) -> None:
    with pytest.raises(dc.NoSiteError, match=reason):
        subject(make).dynamic(spec)


@pytest.mark.parametrize(
    ("make", "spec"),
    [
        (handmade.resnet, "resolution(sizes=(0.5, 0.75))"),
        (handmade.shuffle, "resolution(sizes=(5,), predictor=none)"),
        (handmade.two_inputs, "resolution(sizes=(4,))"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_networks_of_several_sizes_hold_the_contract(make: Make, spec: str) -> None:
    found = subject(make)
    report = dc.verify(found.dynamic(spec), found.module, found.args or found.kwargs, routes=1)
    assert report.passed


@pytest.mark.parametrize("name", ["timm:test_vit", pytest.param("timm:test_convnext", marks=pytest.mark.zoo)])
def test_third_party_networks_of_several_sizes_hold_the_contract(name: str) -> None:
    found = third_party(name)
    dyn = dc.dynamize(found.module, "resolution(sizes=(96,))", found.args)
    assert dc.verify(dyn, found.module, found.args, routes=1).passed


@cache
def third_party(name: str) -> Subject:
    """A model of the zoo with weights that hide nothing."""
    source = zoo.load(name)
    zoo.randomize(source.model, 0, inputs=(source.args, source.kwargs))
    return Subject(source.model, source.args, source.kwargs)


@pytest.mark.parametrize(("make", "spec"), pairs(), ids=lambda value: getattr(value, "__name__", value))
def test_fixed_networks_hold_the_contract(make: Make, spec: str) -> None:
    found = subject(make)
    report = dc.verify(found.dynamic(spec), found.module, found.args or found.kwargs)
    assert report.passed
    assert len(report.checks) == len(CHECKS)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.zoo] if "convnext" in name or "Llama" in name else [])
        for name in THIRD_PARTY
    ],
    ids=lambda name: name.split("?")[0],
)
def test_third_party_networks_hold_the_contract(name: str) -> None:
    found = third_party(name)
    example = found.args or found.kwargs
    for method in (one for one in registry.methods() if fits(one, name)):
        for turn in (CONFIGURATIONS.get(method, (method,)), DECIDING.get(method, ())):
            for spec in turn[THIRD_PARTY.index(name) % max(len(turn), 1) :][:1]:
                dyn = dc.dynamize(found.module, spec, example)
                assert dc.verify(dyn, found.module, example, routes=1).passed


@pytest.mark.parametrize("methods", COMPOSED, ids=str)
@pytest.mark.parametrize("make", [handmade.resnet, handmade.vit], ids=lambda make: make.__name__)
def test_composed_passes_hold_the_contract(make: Make, methods: list[str]) -> None:
    model, example = make()
    dyn = dc.dynamize(model, methods, example)
    assert [spec.partition("(")[0] for spec in dyn.history] == [spec.partition("(")[0] for spec in methods]
    assert dc.verify(dyn, model, example).passed


def test_the_order_of_passes_does_not_matter_for_what_they_compute() -> None:
    model, example = handmade.resnet()
    first, second = COMPOSED[0]
    one = dc.dynamize(model, [first, second], example).eval()
    other = dc.dynamize(model, [second, first], example).eval()
    route = one.run(example, policy=dc.Sampled(3))[1]
    assert set(one.choices) == set(other.choices)
    with torch.no_grad():
        mine = one.run(example, policy=dc.Forced(route))[0]
        theirs = other.run(example, policy=dc.Forced(route))[0]
    assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    assert torch.equal(one.macs(route), other.macs(route))


@pytest.mark.slow
@settings(
    max_examples=4,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    net=networks(),
    per=st.sampled_from(["model", "stage", "block", "dim"]),
    embedding=st.booleans(),
    gate=st.booleans(),
)
def test_random_networks_hold_the_contract(net: Net, per: str, embedding: bool, gate: bool) -> None:
    example = example_of(net)
    fields = {"per": per, "embedding": embedding, "gate": gate and per != "dim"}
    try:
        dyn = dc.dynamize(net.module, "dsnet", example, **fields, divisor=1, minimum=1)
    except dc.NoSiteError:
        return  # some drawn networks have nothing elastic; that it is said so is tested elsewhere
    assert dc.verify(dyn, net.module, example, routes=1).passed


# -- the contract can fail ---------------------------------------------------------------------------


def _broken_name(dyn: dc.DynamicModel) -> None:
    dyn.program.state.register_buffer("stranger", torch.zeros(1))


def _broken_literal(dyn: dc.DynamicModel) -> None:
    for mode, graph in dyn.program.graphs.items():
        relu = next(node for node in graph.nodes if "relu" in str(node.target))
        relu.replace_all_uses_with(relu.args[0])  # pyright: ignore[reportArgumentType]
        dyn._forwards[mode] = compile_graph(graph, mode, dyn.program.state)  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(
    ("damage", "caught"), [(_broken_name, "state names"), (_broken_literal, "full capacity, eval")]
)
def test_a_broken_model_is_caught_and_every_check_reported(damage: object, caught: str) -> None:
    model, example = handmade.resnet()
    dyn = dc.dynamize(model, f"dsnet({FINE})", example)
    assert callable(damage)
    damage(dyn)
    with pytest.raises(dc.ContractError, match=caught) as raised:
        dc.verify(dyn, model, example)
    checks: tuple[Check, ...] = raised.value.report.checks
    assert caught in {check.name for check in checks if not check.passed}
    assert len(checks) == len(CHECKS)


def test_verify_changes_neither_model() -> None:
    model, example = handmade.resnet()
    dyn = dc.dynamize(model, f"dsnet({FINE})", example)
    before = [_values(model), _values(dyn), model.training, dyn.training]
    dc.verify(dyn, model, example)
    after = [_values(model), _values(dyn), model.training, dyn.training]
    assert before[2:] == after[2:]
    for old, new in zip(before[:2], after[:2], strict=True):
        assert isinstance(old, dict)
        assert isinstance(new, dict)
        assert all(torch.equal(old[name], new[name]) for name in old)


def test_a_trained_model_is_verified_with_its_own_weights() -> None:
    found = subject(handmade.resnet)
    dyn = found.dynamic()
    with torch.no_grad():
        for parameter in dyn.parameters():
            parameter.mul_(1.25)
    assert dc.verify(dyn, found.module, found.args[0]).passed


def _values(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("timm:resnet50", "dsnet(per=stage)"),
        ("timm:mobilenetv3_small_100", "dsnet(per=block, grid=2)"),
        ("timm:convnext_atto", "dsnet(per=stage, embedding=True)"),
        ("timm:vit_tiny_patch16_224", "dsnet(per=block)"),
        ("timm:swin_tiny_patch4_window7_224", "dsnet(per=stage)"),
        ("timm:densenet121", "dsnet"),
        ("torchvision:vgg11_bn", "dsnet(per=block)"),
        ("hf:BertForSequenceClassification?num_hidden_layers=4", "dsnet(per=block)"),
        (
            "hf:LlamaForCausalLM?num_hidden_layers=2&hidden_size=256&intermediate_size=512&vocab_size=1000",
            "dsnet",
        ),
    ],
    ids=lambda value: value.split("?")[0],
)
def test_decision_nets_in_the_zoo(name: str, spec: str) -> None:
    found = third_party(name)
    example = found.args or found.kwargs
    dyn = dc.dynamize(found.module, spec, example)
    assert dyn.gated
    assert dc.verify(dyn, found.module, example, routes=1).passed
