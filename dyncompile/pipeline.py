"""Passes and the pipeline: plan, rewrite, check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from dyncompile.analysis.facts import Facts, analyze
from dyncompile.capture import capture
from dyncompile.errors import NoSiteError
from dyncompile.inputs import example_inputs_of, split_inputs
from dyncompile.program import Choice, Program, Sized
from dyncompile.rewrite import Editor
from dyncompile.runtime.model import DynamicModel
from dyncompile.spec import parse_specs, render_spec


@dataclass(frozen=True, slots=True)
class Site:
    """A place where a pass acts: what it is, which choice decides there, and how in words."""

    name: str
    choice: str
    what: str


@dataclass(frozen=True, slots=True)
class Rejection:
    """A place where a pass could have acted and does not, why, and the user's source line."""

    name: str
    reason: str
    line: str = ""


@dataclass(frozen=True)
class Plan:
    """What a pass is going to do; nothing has been edited yet.

    Attributes:
        choices: decision points to insert.
        sites: where they act.
        rejections: where they do not, and why.
        sized: elastic dims whose size a choice decides.
    """

    choices: tuple[Choice, ...] = ()
    sites: tuple[Site, ...] = ()
    rejections: tuple[Rejection, ...] = ()
    sized: Mapping[str, Sized] = field(default_factory=dict[str, Sized])


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
    changed = {f.name: getattr(one, f.name) for f in fields(one) if getattr(one, f.name) != getattr(defaults, f.name)}  # pyright: ignore
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
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments; None looks for them (timm's
            `pretrained_cfg`, a Hugging Face config, else tries the first layer).
        **config: fields of the pass, where `method` names one.

    Returns:
        A trainable module with the source's parameter names.

    Raises:
        SpecError: an unknown method or field.
        CaptureError: the model cannot be traced.
        NoSiteError: the method finds nothing to act on; every rejection is listed.
    """
    passes = parse_specs(method, config)
    args, kwargs = split_inputs(example_inputs_of(model) if example_inputs is None else example_inputs)
    program = capture(model, args, kwargs)
    dyn = DynamicModel(apply_passes(program, passes))
    return dyn.train(model.training)


def apply_passes(program: Program, passes: Sequence[Pass]) -> Program:
    """Apply passes in order; each sees the program that the one before it left."""
    for one in passes:
        facts = analyze(program)
        plan = one.plan(program, facts)
        if not plan.sites:
            reasons = sorted({f"{r.name}: {r.reason}" for r in plan.rejections})
            raise NoSiteError.of_all(
                f"{spec_of(one)} finds no place to act on in this model; it looked at", reasons or ["nothing elastic"]
            )
        editor = Editor(program, facts)
        one.rewrite(editor, plan)
        program = editor.finish(spec_of(one))
    return program
