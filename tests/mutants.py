"""Seeded bugs: rules of the dimension types, and what stands on them, with one thing wrong each.

A mutant says on which network it acts and which check of `tests.validity` must be the first to notice. Most
pretend to have accounted for every dim, so that the framework's own search for forgotten dims stays silent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dyncompile import resize
from dyncompile.analysis.dims import algebra, infer
from dyncompile.analysis.dims.algebra import Dim, Misaligned, Sum, size
from dyncompile.analysis.dims.call import Call, Rule, Type
from dyncompile.analysis.dims.environment import Environment
from dyncompile.analysis.dims.table import _RULES  # pyright: ignore[reportPrivateUsage]
from tests import handmade as hm
from tests.support import Make

Wrap = Callable[[Rule], Rule]
SDPA = "scaled_dot_product_attention"


@dataclass(frozen=True)
class Mutant:
    """One bug: `patches` are context managers that seed it."""

    name: str
    make: Make
    caught_by: str
    patches: Callable[[], Sequence[Any]]

    @contextmanager
    def seeded(self) -> Any:
        with ExitStack() as stack:
            for one in self.patches():
                stack.enter_context(one)
            yield


def bug(name: str, make: Make, caught_by: str, operator: str, wrap: Wrap) -> Mutant:
    """A mutant that replaces one entry of the table by a wrapped one."""
    key = operator if operator in _RULES else f"aten.{operator}"
    return Mutant(name, make, caught_by, lambda: [patch.dict(_RULES, {key: wrap(_RULES[key])})])


def in_place_of(owner: Any, name: str, value: Any) -> Callable[[], Sequence[Any]]:
    """Replace a function or method of the core."""
    return lambda: [patch.object(owner, name, value)]


# -- ways to be wrong -------------------------------------------------------------------------------


def accounted(call: Call) -> None:
    """Claim that no dim was forgotten."""
    call.accounted += [dim for dims in call.tensors() for dim in dims]


def nothing(*args: Any, **kwargs: Any) -> None:
    """Do not record anything."""


def forgets(method: str) -> Wrap:
    """A rule that does not call one of rewrite, normalizes, contracts."""

    def wrap(original: Rule) -> Rule:
        def rule(call: Call) -> Type:
            setattr(call, method, nothing)
            accounted(call)
            return original(call)

        return rule

    return wrap


def overlooks(argument: str) -> Wrap:
    """A rule that does not see one of its tensor arguments."""

    def wrap(original: Rule) -> Rule:
        def rule(call: Call) -> Type:
            has = call.has
            setattr(call, "has", lambda name: name != argument and has(name))  # noqa: B010
            return original(call)

        return rule

    return wrap


def unlinked(original: Rule) -> Rule:
    """A rule that ties nothing together."""

    def rule(call: Call) -> Type:
        env = call.env
        accounted(call)
        with patch.object(Environment, "unify", lambda self, a, b: self.normal(a)):
            found = original(call)
        assert call.env is env
        return found

    return rule


def unfrozen(original: Rule) -> Rule:
    """A rule that lets everything move."""

    def rule(call: Call) -> Type:
        setattr(call, "freeze", lambda dim, reason: dim)  # noqa: B010
        accounted(call)
        return original(call)

    return rule


def returns(change: Callable[[Any], Type]) -> Wrap:
    """A rule with another result."""
    return lambda original: lambda call: change(original(call))


def forgets_to_freeze(original: Rule) -> Rule:
    """A rule that lets everything move and says so nowhere."""

    def rule(call: Call) -> Type:
        setattr(call, "freeze", lambda dim, reason: dim)  # noqa: B010
        return original(call)

    return rule


def rewrites(**wrong: Any) -> Wrap:
    """A rule that writes other literals than it should; None leaves the old one."""

    def wrap(original: Rule) -> Rule:
        def rule(call: Call) -> Type:
            write = call.rewrite

            def write_wrong(**given: Any) -> None:
                write(**{key: value for key, value in {**given, **wrong}.items() if value is not None})

            setattr(call, "rewrite", write_wrong)  # noqa: B010
            return original(call)

        return rule

    return wrap


def contracts_less(drop: Callable[[tuple[Dim, ...]], tuple[Dim, ...]]) -> Wrap:
    """A rule that counts too little work."""

    def wrap(original: Rule) -> Rule:
        def rule(call: Call) -> Type:
            count = call.contracts
            accounted(call)
            setattr(call, "contracts", lambda *dims: count(*drop(dims)))  # noqa: B010
            return original(call)

        return rule

    return wrap


def grouped_rows_swapped(original: Rule) -> Rule:
    """Depthwise multipliers: output channels as (multiplier, group) instead of (group, multiplier)."""

    def rule(call: Call) -> Type:
        found = original(call)
        groups = int(call["groups"])
        if groups == 1 or not isinstance(found, tuple) or isinstance(found[1], list):
            return found
        group, inner = call.env.split(found[1], groups)
        return (found[0], call.env.normal(inner + group), *found[2:])

    return rule


def ties_the_concatenated_axis(original: Rule) -> Rule:
    """cat: parts of one size move together, though nothing asks for it."""

    def rule(call: Call) -> Type:
        parts = call.types("tensors")
        axis = call.axis("dim", len(parts[0]))
        for other in parts[1:]:
            if size(other[axis]) == size(parts[0][axis]):
                call.env.unify(parts[0][axis], other[axis])
        return original(call)

    return rule


def reversed_sum(found: Any) -> Type:
    """The parts of a concatenation in the wrong order."""
    turn = lambda dim: (Sum(dim[0].segments[::-1]),) if len(dim) == 1 and isinstance(dim[0], Sum) else dim  # noqa: E731
    return tuple(map(turn, found))


def swapped_factors(found: Any) -> Type:
    """The product of the last axis in column-major order."""
    return (*found[:-1], found[-1][::-1])


def unmoved(original: Rule) -> Rule:
    """Axes stay in their order."""
    return lambda call: call.type("self")


def first_operand(call: Call) -> Type:
    """Pointwise: the type of the first operand that has the shape, the others go their own way."""
    accounted(call)
    return next(t for t in call.tensors() if tuple(map(size, t)) == call.shape)


def no_chunks(self: Environment, total: Sum, outer: int, inner: int) -> tuple[Dim, Dim]:
    """A sum splits only where its segments do: the bug that made inference depend on the order of graphs."""
    if any(size(segment) % inner for segment in total.segments):
        raise Misaligned("segments are not multiples")
    parts = [self.split(segment, size(segment) // inner) for segment in total.segments]
    for _, other in parts[1:]:
        self.unify(parts[0][1], other)
    return self.normal((Sum(tuple(first for first, _ in parts)),)), self.normal(parts[0][1])


def order_dependent_sums() -> Sequence[Any]:
    """The bug of `no_chunks`, and nobody who compares the evaluation graph with the training graph."""
    split = patch.object(Environment, "_split_sum", no_chunks)
    return [split, patch.object(infer, "_later_bindings", lambda *args: [])]


def without_offsets(factor: Any, widths: Any) -> Tensor:
    """Kept positions of a sum that all start at its first segment."""
    if isinstance(factor, Sum):
        return torch.cat([algebra.kept(segment, widths) for segment in factor.segments])
    n = algebra.factor_size(factor)
    return torch.arange(widths.get(factor.name, n) if isinstance(factor, algebra.Elastic) else n)


# -- networks for operators that the hand-made ones lack --------------------------------------------


class Misc(nn.Module):
    """Over hidden widths: softmax, mean, group norm, roll, select; queries and keys from two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(3, 12)
        self.a, self.b, self.c = nn.Linear(12, 7), nn.Linear(7, 8), nn.Linear(8, 6)
        self.q, self.k, self.v = nn.Linear(12, 6), nn.Linear(12, 6), nn.Linear(12, 6)
        self.gate, self.head = nn.Linear(12, 5), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x))).flatten(2).transpose(1, 2)
        y = F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)).mean(1)
        x = x.mean(1)
        y = y * self.gate(x)[:, 3, None]
        z = self.b((2 * self.a(x)).softmax(-1))
        z = self.c(z - z.mean(1, keepdim=True)).roll(1, 1)
        return self.head(torch.cat((y, z), 1))


def misc() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    return Misc(), torch.randn(3, 3, 6, 6)


MUTANTS = (
    # rules that forget one of their tensors
    bug("batch_norm forgets running_var", hm.plain_cnn, "gaps", "batch_norm", overlooks("running_var")),
    bug("batch_norm ties nothing", hm.plain_cnn, "narrowed", "batch_norm", unlinked),
    bug("linear forgets its bias", hm.vit, "gaps", "linear", overlooks("bias")),
    bug("linear ties nothing", hm.vit, "narrowed", "linear", unlinked),
    bug("conv forgets its bias", hm.dense, "gaps", "conv2d", overlooks("bias")),
    bug("matmul does not tie what it contracts", hm.bert_like, "narrowed", "matmul", unlinked),
    bug("attention does not tie queries to keys", misc, "narrowed", SDPA, unlinked),
    bug("pointwise does not broadcast", hm.resnet, "narrowed", "pointwise", lambda original: first_operand),
    bug("cat does not tie the other axes", hm.vit, "narrowed", "cat", unlinked),
    # literals
    bug("conv keeps its groups", hm.grouped, "narrowed", "conv2d", forgets("rewrite")),
    bug("layer_norm keeps its shape", hm.vit, "narrowed", "layer_norm", forgets("rewrite")),
    bug("group_norm keeps its groups", misc, "narrowed", "group_norm", forgets("rewrite")),
    bug("view keeps its sizes", hm.bert_like, "narrowed", "view.default", forgets("rewrite")),
    bug("expand keeps its sizes", hm.decoder, "narrowed", "expand", forgets("rewrite")),
    bug("chunk keeps its sizes", hm.shuffle, "narrowed", "chunk", forgets("rewrite")),
    bug("slice starts where it did", hm.decoder, "narrowed", "slice", rewrites(start=None)),
    bug("attention keeps its default scale", hm.vit, "masked", SDPA, forgets("rewrite")),
    bug("attention pins another scale", hm.vit, "full", SDPA, rewrites(scale=0.25)),
    # what must stay
    bug("embedding lets its rows move", hm.bert_like, "narrowed", "embedding", unfrozen),
    bug("conv lets its kernel move", hm.plain_cnn, "narrowed", "conv2d", unfrozen),
    bug("roll lets its axis move", misc, "masked", "roll", unfrozen),
    bug("select drops its axis", misc, "gaps", "select", forgets_to_freeze),
    bug("select lets its axis move", misc, "narrowed", "select", unfrozen),
    # what is not zero-equivalent
    bug("softmax is not marked", misc, "masked", "softmax", forgets("normalizes")),
    bug("mean is not marked", hm.decoder, "masked", "mean", forgets("normalizes")),
    bug("layer_norm is not marked", hm.vit, "masked", "layer_norm", forgets("normalizes")),
    # order of positions
    bug("conv swaps groups and multipliers", hm.depthwise_se, "masked", "conv2d", grouped_rows_swapped),
    bug("cat reverses its parts", hm.dense, "masked", "cat", returns(reversed_sum)),
    bug("chunk reverses its parts", hm.shuffle, "narrowed", "chunk", returns(lambda parts: parts[::-1])),
    bug("flatten swaps its factors", hm.flatten_cnn, "masked", "flatten", returns(swapped_factors)),
    bug("transpose moves nothing", hm.vit, "inference", "transpose", unmoved),
    bug("permute moves nothing", hm.vit, "inference", "permute", unmoved),
    Mutant(
        "every dim is taken for a prefix",
        hm.vit,
        "masked",
        in_place_of(resize, "is_prefix", lambda dim, widths: True),
    ),
    Mutant(
        "sums are kept without offsets",
        hm.dense,
        "masked",
        in_place_of(algebra, "_kept_factor", without_offsets),
    ),
    # work
    bug("conv forgets its kernel", hm.plain_cnn, "cost", "conv2d", contracts_less(lambda dims: dims[:-2])),
    bug("linear forgets its tokens", hm.vit, "cost", "linear", contracts_less(lambda dims: dims[-2:])),
    bug("attention counts no values", hm.vit, "cost", SDPA, contracts_less(lambda dims: (*dims[:-1], ()))),
    # too careful, and dependent on the order
    bug("cat ties what it concatenates", misc, "freedom", "cat", ties_the_concatenated_axis),
    Mutant("sums split by segments", hm.shuffle, "gaps", in_place_of(Environment, "_split_sum", no_chunks)),
    Mutant("sums split by segments, unseen", hm.shuffle, "orders", order_dependent_sums),
)
