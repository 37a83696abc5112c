"""Third-party models load by name, with inputs that they accept; what cannot be loaded says why."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.models import HF_CLASSES, REFERENCE
from dyncompile.errors import SpecError
from dyncompile.zoo import ModelSpec, example_inputs, load, randomize, third_party

TINY_BERT = (
    "hf:BertForSequenceClassification?num_hidden_layers=1&hidden_size=32&num_attention_heads=2"
    "&intermediate_size=64&vocab_size=100"
)
HEADLESS = "timm:vit_tiny_patch16_dinov3_qkvb"


def image_net(width: int = 8) -> nn.Module:
    """Accepts 28 x 28 images only, and does not say so."""
    return nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.Flatten(), nn.Linear(width * 28 * 28, 3))


def two_inputs() -> tuple[nn.Module, dict[str, Tensor]]:
    return nn.Bilinear(3, 4, 5), {"input1": torch.randn(2, 3), "input2": torch.randn(2, 4)}


def no_model() -> int:
    return 7


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ("timm:resnet18?num_classes=10", (3, 10)),
        ("torchvision:mobilenet_v3_small?num_classes=7", (3, 7)),
        (TINY_BERT, (3, 2)),
        ("tests.test_zoo:image_net?width=4", (3, 3)),
    ],
)
def test_loaded_model_accepts_its_inputs(spec: str, shape: tuple[int, ...]) -> None:
    source = load(spec, batch=3)
    out = source.model(*source.args, **source.kwargs)
    assert source.name == spec
    assert not source.model.training
    assert tuple(getattr(out, "logits", out).shape) == shape


def test_function_may_give_its_inputs() -> None:
    source = load("tests.test_zoo:two_inputs")
    assert (source.args, set(source.kwargs)) == ((), {"input1", "input2"})
    assert source.model(**source.kwargs).shape == (2, 5)


def test_decoder_runs_without_cache_and_with_padding() -> None:
    small = "n_embd=32&n_head=2&n_layer=1&vocab_size=100"
    source = load(f"hf:GPT2LMHeadModel?{small}")
    assert source.kwargs["use_cache"] is False
    assert 0 < source.kwargs["attention_mask"].float().mean() < 1
    assert source.model(**source.kwargs).logits.shape == (2, 16, 100)


def test_headless_model_gets_a_classifier() -> None:
    assert load(HEADLESS).model.num_classes == 1000


def test_folder_gives_its_stored_weights(tmp_path: Path) -> None:
    source = load(TINY_BERT)
    source.model.save_pretrained(tmp_path)  # pyright: ignore[reportCallIssue]
    stored = load(f"hf:{tmp_path}")
    assert type(stored.model) is type(source.model)
    want, got = (m(**source.kwargs).logits for m in (source.model, stored.model))
    assert torch.equal(want, got)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    model: Any = load(TINY_BERT).model
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(SpecError, match="safetensors"):
        load(f"hf:{tmp_path}")


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", "{", "config.json cannot be read: .*not a valid JSON"),
        ("config.json", '{"model_type": "nope"}', "config.json cannot be read: .*`nope`"),
        ("config.json", '{"model_type": "bert", "hidden_size": "wide"}', "expected int, got str"),
        ("model.safetensors", "no weights", "the model cannot be made: .*header"),
    ],
)
def test_damaged_folder_is_named(file: str, content: str, says: str, tmp_path: Path) -> None:
    load(TINY_BERT).model.save_pretrained(tmp_path)  # pyright: ignore[reportCallIssue]
    (tmp_path / file).write_text(content)
    with pytest.raises(SpecError, match=says) as raised:
        load(f"hf:{tmp_path}")
    assert "save_pretrained" in (raised.value.fix or "")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("resnet50", "not a model specification"),
        ("timm:", "not a model specification"),
        ("timm:resnet18?num_classes", "not key=value"),
        ("timm:resnet18?num_classes=1&num_classes=2", "stated twice: num_classes"),
        ("timm:resent18", "did you mean resnet18"),
        ("timm:resnet18?nun_classes=3", "check nun_classes"),
        ("tim:resnet18", "did you mean timm:resnet18"),
        ("torchvision:vit_b_61", "vit_b_16"),
        ("hf:BertForSequenceClasification", "BertForSequenceClassification"),
        ("hf:BertConfig", "no model class"),
        ("hf:BertModel?num_layer=2", "did you mean num_hidden_layers"),
        ("hf:LlamaForCausalLM", "6.7 billion parameters"),
        ("hf:/no/such/folder", "no folder"),
        ("tests.test_zoo:imagenet", "did you mean image_net"),
        ("tests.test_zoo:image_net?widht=3", "unexpected keyword argument 'widht'"),
        ("tests.test_zoo:no_model", "returned a int, not a model"),
    ],
)
def test_bad_spec_says_what_to_do(spec: str, says: str) -> None:
    with pytest.raises(SpecError, match=says) as raised:
        load(spec)
    assert raised.value.fix


def test_random_weights_cannot_be_pretrained() -> None:
    with pytest.raises(SpecError, match="folder of weights"):
        load(TINY_BERT, pretrained=True)
    with pytest.raises(SpecError, match="at least one"):
        load(TINY_BERT, batch=0)


def test_error_inside_a_users_module_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_zoo.py").write_text("import a_library_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_missing"):
        load("broken_zoo:model")


LITERALS = st.one_of(st.integers(), st.booleans(), st.none(), st.text("abc-1. '", min_size=1))
VALUES = st.one_of(LITERALS, st.lists(st.integers(), max_size=3))


@given(st.dictionaries(st.sampled_from(("a", "b_c", "d.e")), VALUES))
def test_spec_reads_back(overrides: dict[str, Any]) -> None:
    spec = ModelSpec("timm", "resnet18", tuple(overrides.items()))
    assert ModelSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (image_net(), (2, 1, 28, 28)),
        (nn.Linear(5, 3), (2, 5)),
        (nn.Sequential(nn.Embedding(20, 4), nn.Linear(4, 2)), (2, 16)),
        (nn.Sequential(nn.Conv1d(2, 4, 3), nn.AdaptiveAvgPool1d(1)), (2, 2, 256)),
        (nn.Linear(5, 3).double(), (2, 5)),
    ],
)
def test_inputs_are_tried_from_the_first_layer(model: nn.Module, shape: tuple[int, ...]) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    (x,), kwargs = example_inputs(model)
    assert (tuple(x.shape), kwargs, model.training) == (shape, {}, True)
    assert not x.is_floating_point() or x.dtype == next(model.parameters()).dtype
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ("timm:resnet18?in_chans=1", (2, 1, 224, 224)),
        ("timm:vit_tiny_patch16_224?img_size=32&depth=1", (2, 3, 32, 32)),
    ],
)
def test_overrides_count_more_than_the_configuration_of_a_name(spec: str, shape: tuple[int, ...]) -> None:
    source = load(spec)
    model: Any = source.model
    assert model.pretrained_cfg["input_size"] == (3, 224, 224)
    assert tuple(source.args[0].shape) == shape
    model(*source.args)


@pytest.mark.parametrize("model", [nn.ReLU(), nn.Bilinear(3, 4, 5)])
def test_inputs_that_cannot_be_derived_are_asked_for(model: nn.Module) -> None:
    with pytest.raises(SpecError, match="pass example_inputs"):
        example_inputs(model)


def zeroed_net() -> Any:
    net: Any = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.LayerNorm(6), nn.Linear(6, 2))
    for tensor in (net[1].weight, net[3].weight, net[3].bias):
        nn.init.zeros_(tensor)
    return net.register_parameter("scale", nn.Parameter(torch.full((6,), 1e-6))) or net


def test_randomize_leaves_no_constant() -> None:
    net = randomize(zeroed_net())
    assert all(tensor.std() > 1e-2 for tensor in net.state_dict().values() if tensor.ndim)
    assert net.scale.min() >= 0.5
    net(torch.randn(8, 4)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net[:1].parameters())
    assert (net.training, net[1].training, net[1].momentum) == (True, True, 0.1)


def test_randomized_deep_net_tells_images_apart() -> None:
    """With statistics that fit no activation, two images differ by 1e-8 behind 50 batch norms."""
    source = load("torchvision:mobilenet_v2")
    randomize(source.model, seed=3, inputs=(source.args, source.kwargs))
    first, second = source.model(*source.args)
    assert (first - second).abs().mean() > 0.05 * first.std()
    assert 0.01 < first.std() < 100


def test_randomize_moves_statistics_without_inputs() -> None:
    net = nn.ModuleList([nn.Bilinear(3, 4, 5), nn.BatchNorm1d(5)])
    norm: Any = randomize(net)[1]
    assert norm.running_mean.std() > 1e-2
    assert norm.running_var.std() > 1e-2


def test_randomize_depends_on_its_seed_only() -> None:
    first, again, other = zeroed_net(), zeroed_net(), zeroed_net()
    again.load_state_dict(first.state_dict())
    other.load_state_dict(first.state_dict())
    randomize(first, seed=1)
    torch.rand(3)
    randomize(again, seed=1)
    randomize(other, seed=2)
    pairs = zip(first.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    assert not torch.equal(first[3].weight, other[3].weight)
    assert torch.equal(first[0].weight, other[0].weight)  # was random already


def test_missing_extra_names_the_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"pip install 'dyncompile\[timm\]'"):
        load("timm:resnet18")
    with pytest.raises(SpecError, match=r"pip install 'dyncompile\[hf\]'"):
        load(TINY_BERT)


Answers = Callable[..., list[str]]


@pytest.fixture
def torchvision_answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Replaces the import by a series of answers; gives the list of what happens."""

    def replace(*answers: object) -> list[str]:
        happened: list[str] = []
        series = iter(answers)

        def answer(name: str) -> object:
            happened.append(name)
            value = next(series)
            if isinstance(value, Exception):
                raise value
            return value

        monkeypatch.setattr(third_party, "_declare_missing_operators", lambda: happened.append("declare"))
        monkeypatch.setattr(third_party.importlib, "import_module", answer)
        monkeypatch.setattr(third_party, "sys", SimpleNamespace(modules={}))
        return happened

    return replace


MISMATCH = RuntimeError("operator torchvision::nms does not exist")


def test_mismatched_torchvision_gets_its_schemas(torchvision_answers: Answers) -> None:
    happened = torchvision_answers(MISMATCH, "module")
    assert third_party.third_party("torchvision") == "module"
    assert happened == ["torchvision", "declare", "torchvision"]


def test_matching_torchvision_is_left_alone(torchvision_answers: Answers) -> None:
    happened = torchvision_answers("module")
    third_party.third_party("torchvision")
    assert happened == ["torchvision"]


def test_other_import_errors_are_not_swallowed(torchvision_answers: Answers) -> None:
    happened = torchvision_answers(RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        third_party.third_party("torchvision")
    assert happened == ["torchvision"]


def test_sweep_names_its_models_well() -> None:
    specs = [*REFERENCE, *HF_CLASSES]
    assert len(REFERENCE) == 57
    assert len(HF_CLASSES) >= 27
    assert len(specs) == len(set(specs))
    assert [spec for spec in specs if str(ModelSpec.parse(spec)) != spec] == []
