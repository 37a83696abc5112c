"""Bad input gets an error of the library's family that helps, and the user's model stays untouched."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dyncompile as dc
from tests import handmade
from tests.tiny import conv_net


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Parameters, buffers, modes and attributes are after the block what they were before it."""
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    yield
    assert [module.training for module in model.modules()] == modes
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def refused(kind: type[dc.DyncompileError], model: nn.Module, example: Any, method: Any = "dsnet") -> str:
    with untouched(model), pytest.raises(kind) as caught:
        dc.dynamize(model, method, example)
    return str(caught.value)


# -- what is no dynamic model --------------------------------------------------------------------


_TAKERS: dict[str, Callable[[Any, Path], Any]] = {
    "fit": lambda model, path: dc.fit(model, dc.recipes.dsnet(target=0.6), [], directory=path),
    "calibrate_exit": lambda model, path: dc.calibrate_exit(model, [], target=0.5),
    "deploy": lambda model, path: dc.deploy(model),
    "export": lambda model, path: dc.export(model, path / "net.pt2", "pt2"),
    "specialize": lambda model, path: dc.specialize(model, {}),
    "verify": lambda model, path: dc.verify(model, model, torch.randn(2, 3, 16, 16)),
    "Latency": lambda model, path: dc.Latency(model),
    "profile": lambda model, path: dc.profile(model),
    "save": lambda model, path: dc.save(model, path),
    "reduce_to_source": lambda model, path: dc.reduce_to_source(model),
}


@pytest.mark.parametrize("taker", _TAKERS)
def test_static_network_where_a_dynamic_one_is_due(taker: str, tmp_path: Path) -> None:
    model, _ = conv_net()
    with untouched(model), pytest.raises(dc.SpecError, match="Sequential is no dynamic model") as caught:
        _TAKERS[taker](model, tmp_path)
    assert "what dynamize returned" in str(caught.value)
    assert not list(tmp_path.iterdir())


# -- models -----------------------------------------------------------------------------------------


def test_model_without_parameters() -> None:
    assert "no parameters" in refused(dc.CaptureError, *handmade.no_parameters())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_module() -> None:
    model, example = conv_net()
    traced: Any = torch.jit.trace(model.eval(), example)
    with pytest.raises(dc.CaptureError, match="scripted") as caught:
        dc.dynamize(traced, "dsnet", example)
    assert "eager module" in str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_module() -> None:
    model, example = conv_net()
    compiled: Any = torch.compile(model)
    with untouched(model), pytest.raises(dc.CaptureError, match="already compiled") as caught:
        dc.dynamize(compiled, "dsnet", example)
    assert "_orig_mod" in str(caught.value)


def test_compiled_module_is_not_run_to_find_its_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dyncompile.pipeline.example_inputs", lambda model: pytest.fail("it ran"))
    compiled: Any = torch.compile(conv_net()[0])
    assert "already compiled" in refused(dc.CaptureError, compiled, None)


def test_branch_on_values_names_the_users_line() -> None:
    message = refused(dc.CaptureError, *handmade.control_flow())
    assert "branches on the values of a tensor" in message
    assert "special.py" in message
    assert "torch.where" in message


def test_model_on_another_device() -> None:
    model, example = conv_net()
    with pytest.raises(dc.CaptureError, match="the model is on meta, an example input on cpu"):
        dc.dynamize(model.to("meta"), "dsnet", example)


# -- example inputs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "example",
    [
        torch.randn(2, 4, 8, 8),
        torch.randn(2, 3),
        torch.randn(2, 3, 8, 8, dtype=torch.float64),
        torch.zeros(2, 3, 8, 8, dtype=torch.int64),
        torch.tensor(1.0),
        3,
        (),
        {"wrong": torch.randn(2, 3, 8, 8)},
        (torch.randn(2, 3, 8, 8), torch.randn(2)),
    ],
    ids=["channels", "rank", "double", "integers", "scalar", "number", "nothing", "keyword", "too many"],
)
def test_inputs_that_do_not_fit(example: Any) -> None:
    message = refused(dc.DyncompileError, conv_net()[0], example)
    assert "\n  do: " in message or "the call does not fit (input)" in message


def test_integer_only_inputs_are_fine_for_a_model_that_eats_them() -> None:
    model, ids = handmade.decoder()
    with untouched(model):
        dyn = dc.dynamize(model, "dsnet(gate=False, divisor=2, minimum=2)", ids)
    assert torch.equal(dyn.eval()(ids), model.eval()(ids))


def test_inputs_of_another_shape_or_type_later() -> None:
    model, example = conv_net()
    dyn = dc.dynamize(model, "dsnet", example)
    wrong: tuple[Tensor, ...] = (torch.randn(2, 3, 9, 8), torch.randn(2, 3), torch.zeros(2, 3, 8, 8).long())
    for given in wrong:
        with pytest.raises(dc.InputError):
            dyn(given)


# -- methods ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("dsnt", ["'dsnt'", "did you mean 'dsnet'?"]),
        ("drnet", ["routing", "resolution"]),
        ("dsnet(ratios=(0.0, 1.0))", ["(0, 1]"]),
        ("dsnet(ratios=(0.5, 1.5))", ["(0, 1]", "1.5"]),
        ("dsnet(per=dim, widht=3)", ["no field 'widht'", "column 16"]),
        ("dsnet(per=layer)", ["per must be"]),
        ("dsnet(ratios='x')", ["dsnet"]),
        ("dsnet(0.5)", ["keyword"]),
        ("dsnet(divisor=__import__('os'))", ["only literals"]),
        ("", ["cannot read the spec"]),
    ],
    ids=str,
)
def test_methods_that_cannot_be_understood(method: Any, said: list[str]) -> None:
    message = refused(dc.SpecError, *conv_net(), method)
    assert [text for text in said if text not in message] == []


def test_model_with_nothing_to_slice_lists_why() -> None:
    message = refused(dc.NoSiteError, nn.Linear(4, 4), torch.randn(2, 4))
    assert "it is part of the model's output" in message


def test_headless_model_is_sliced_inside_and_says_why_its_stream_is_not() -> None:
    model, example = handmade.headless()
    with untouched(model):
        dyn = dc.dynamize(model, "dsnet(gate=False, divisor=2, minimum=2)", example)
    assert "it is part of the model's output" in dyn.explain()


def test_success_leaves_the_model_untouched_too() -> None:
    model, example = conv_net()
    with untouched(model):
        dyn = dc.dynamize(model, "dsnet", example)
        dyn(example).sum().backward()
        dc.verify(dyn, model, example)
