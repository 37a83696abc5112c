"""Passes and the pipeline: plan, rewrite, check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

from torch import Tensor, nn

from dyncompile.analysis.facts import Facts, analyze
from dyncompile.capture import capture
from dyncompile.capture.check import check_module
from dyncompile.collector import paused_collector
from dyncompile.errors import NoSiteError
from dyncompile.plan import Plan, Rejection, Site
from dyncompile.program import Program
from dyncompile.rewrite import Editor
from dyncompile.runtime.model import DynamicModel
from dyncompile.spec import parse_specs, render_spec
from dyncompile.variants import edited
from dyncompile.zoo.inputs import as_inputs, example_inputs

__all__ = ["Pass", "Plan", "Rejection", "Site", "apply_passes", "call_of", "dynamize", "spec_of"]


@runtime_checkable
class Pass(Protocol):
    """A method as data: a frozen dataclass whose fields are its configuration."""

    method: ClassVar[str]

    def plan(self, program: Program, facts: Facts) -> Plan:
        """Sites and rejections. Pure: reads only, same result every time."""
        ...

    def rewrite(self, editor: Editor, plan: Plan) -> None:
        """Carry out a plan, mechanically, through the editor."""
        ...


def spec_of(one: Pass) -> str:
    """The text form of a pass; `parse_specs` reads it back."""
    defaults = type(one)()
    names = [field.name for field in fields(cast(Any, one))]
    changed = {name: getattr(one, name) for name in names if getattr(one, name) != getattr(defaults, name)}
    return render_spec(one.method, changed)


def dynamize(
    model: nn.Module,
    method: str | Pass | Sequence[str | Pass] = "dsnet",
    example_inputs: Tensor | tuple[Any, ...] | dict[str, Any] | None = None,
    **config: Any,
) -> DynamicModel:
    """Turn a static network into a dynamic one that equals it exactly at full capacity.

    Args:
        model: any eager module that torch.export can trace; it stays as it is.
        method: a registered name, a spec string such as ``"dsnet(per=stage)"``, a pass, or a list of these.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments; None looks for them
            (timm's `pretrained_cfg` if that runs, a Hugging Face config, else tries the first layer).
        **config: fields of the pass, where `method` names one.

    Returns:
        A trainable module with the source's parameter names.

    Raises:
        SpecError: an unknown method or field.
        CaptureError: the model cannot be traced.
        NoSiteError: the method finds nothing to act on; every rejection is listed.
    """
    passes = parse_specs(method, config)
    args, kwargs = call_of(model, example_inputs)
    program = capture(model, args, kwargs)
    dyn = DynamicModel(apply_passes(program, passes))
    return dyn.train(model.training)


def call_of(model: nn.Module, given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(positional, keyword) example inputs: as given, or what the model says about itself."""
    if given is not None:
        return as_inputs(given)
    check_module(model)  # before anything runs: a compiled model would compile at every size that is tried
    return example_inputs(model)


def apply_passes(program: Program, passes: Sequence[Pass]) -> Program:
    """Apply passes in order; each sees the program that the one before it left.

    Where that has several sizes of an input, a pass is applied to each of them.
    """
    if not program.history:
        program = replace(program, origin=program.graphs)
    for one in passes:
        edit = partial(_applied, one)
        program = edit(program) if program.variants is None else edited(program, edit)
    return program


@paused_collector()
def _applied(one: Pass, program: Program) -> Program:
    facts = analyze(program)
    plan = one.plan(program, facts)
    if not plan.sites:
        reasons = sorted({f"{r.name}: {r.reason}" for r in plan.rejections})
        raise NoSiteError.of_all(
            f"{spec_of(one)} finds no place to act on in this model; it looked at",
            reasons or ["nothing elastic"],
        )
    editor = Editor(program, facts)
    one.rewrite(editor, plan)
    return editor.finish(spec_of(one), plan)
