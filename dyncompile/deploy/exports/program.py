"""The batch-1 program of a dynamic model: learned decisions, real conditions, plain operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

from dyncompile.deploy.calling import has_tensor
from dyncompile.deploy.exports import forms
from dyncompile.deploy.exports.columns import by_column
from dyncompile.deploy.exports.constants import Constants
from dyncompile.deploy.exports.frames import ROWS, Frame
from dyncompile.deploy.exports.staging import Stager, row_of
from dyncompile.deploy.norms import fold_norms
from dyncompile.policies import Policy
from dyncompile.program import Program, flat_inputs
from dyncompile.runtime import ops
from dyncompile.signature import Signature
from dyncompile.torchlib import python_calling
from dyncompile.variants import at, columns_of


@dataclass(frozen=True)
class OneSample:
    """A program for one sample.

    Attributes:
        module: takes the source's tensor arguments by position or name; gives (output, decisions by choice).
        arguments: names of the arguments.
        choices: names of the decisions, in the order in which they are given.
        given: which of the source's flat outputs are tensors; the others are constants.
    """

    module: fx.GraphModule
    arguments: tuple[str, ...]
    choices: tuple[str, ...]
    given: tuple[bool, ...]

    def outputs(self, names: Sequence[str]) -> list[str]:
        """Names of all that the program gives, from those of the source's flat outputs."""
        kept = (name for name, is_tensor in zip(names, self.given, strict=True) if is_tensor)
        return [*kept, *(f"route.{name}" for name in self.choices)]


def one_sample(source: Program, policy: Policy, *, decisions_only: bool = False) -> OneSample:
    """The program of a dynamic model for one sample; norms are folded where they can be.

    With `decisions_only` its output is ``()``, and nothing runs that no decision needs.
    """
    program = fold_norms(source)
    constants, signature = Constants(program, decisions_only), program.signature
    choices = tuple(program.choices)
    frame = Frame(None, {}, frozenset(), lambda frame, key, value: value)
    inputs = [
        leaf.constant if leaf.shape is None else frame.input(f"input_{i}")
        for i, leaf in enumerate(signature.leaves)
    ]
    write = _write_sizes if program.variants else _write
    outputs = write(program, policy, constants, frame, inputs)
    given = tuple(isinstance(value, fx.Node) for value in outputs)
    frame.graph.output((*outputs, *(_decision(frame, constants, name) for name in choices)))
    names = _adopt(frame.graph, signature, choices, len(outputs))
    owner = constants.owner()
    for name, side in frame.sides.named_children():
        owner.add_module(name, side)
    return OneSample(fx.GraphModule(owner, frame.graph, "OneSample").eval(), names, choices, given)


def _write(
    program: Program, policy: Policy, constants: Constants, frame: Frame, inputs: Sequence[Any]
) -> list[Any]:
    """The flat outputs of a program without sizes."""
    stager = Stager(program, policy, constants)
    frame.begin(stager.fixed, stager.sizes.adapt)
    return stager.write(frame, inputs)


def _write_sizes(
    program: Program, policy: Policy, constants: Constants, frame: Frame, inputs: Sequence[Any]
) -> list[Any]:
    """The flat outputs of a program that decides on its input's size first."""
    variants = program.variants
    assert variants is not None
    stagers = [Stager(at(program, column), policy, constants) for column in columns_of(program)]
    heads = Stager(replace(program, graphs=variants.heads, variants=None), policy, constants)
    frame.values.update(zip(flat_inputs(heads.graph), inputs, strict=True))
    outputs: list[Any] = []

    def write(side: Frame, column: int) -> list[fx.Node]:
        own = [side.find(node) for node in flat_inputs(heads.graph)]
        if column != variants.native:
            own[variants.image] = side.call(ops.resized, own[variants.image], variants.sizes[column])
        side.begin(stagers[column].fixed, stagers[column].sizes.adapt)
        outputs[:] = stagers[column].write(side, own)
        return [value for value in outputs if isinstance(value, fx.Node)]

    def blank(side: Frame) -> list[fx.Node]:
        native = stagers[variants.native]
        return native.sizes.blank(side, native.outputs)

    (decide,) = (node for node in heads.graph.nodes if node.target is ops.decide)
    choice = program.choices[variants.choice]
    if len(decide.args) < 3:
        row = row_of(policy, choice)
        frame.begin({choice.name: row}, frame.adapt)
        write(frame, row.index(1.0))
        return outputs
    heads.ask(frame, decide)
    if constants.decisions_only and not any(stager.asks for stager in stagers):
        return []
    found = iter(by_column(frame, choice, write, blank, constants.full))
    return [next(found) if isinstance(value, fx.Node) else value for value in outputs]


def _decision(frame: Frame, constants: Constants, name: str) -> fx.Node:
    """What was decided, for the record; full capacity where nothing was asked."""
    if name in frame.known:
        return frame.call(forms.row, frame.known[name])
    return frame.find((ROWS, name)) if frame.has((ROWS, name)) else constants.full(frame, name)


def _adopt(graph: fx.Graph, signature: Signature, choices: Sequence[str], outputs: int) -> tuple[str, ...]:
    """Give a graph the source's tensor arguments, and (output, decisions by choice) as what it returns."""
    flat = list(range(len(signature.leaves)))
    named: dict[str, Any] = pytree.tree_unflatten(flat, signature.structure)
    kept = {name: value for name, value in named.items() if has_tensor(value, signature)}
    result = pytree.tree_unflatten(list(range(outputs)), signature.out_structure) if outputs else ()
    returned = pytree.tree_structure((result, dict.fromkeys(choices, 0)))
    graph.set_codegen(python_calling(list(kept), pytree.tree_structure(tuple(kept.values())), returned))
    return tuple(kept)
