"""Laws of the dimension algebra, on random dims under random refinements and at random widths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from dyncompile.analysis.dims.algebra import (
    BATCH,
    BATCH_STAND_IN,
    Atom,
    Dim,
    Elastic,
    Factor,
    Misaligned,
    Sum,
    active,
    elastics,
    fixed,
    is_prefix,
    kept,
    leaves,
    render,
    size,
)
from dyncompile.analysis.dims.environment import Environment
from dyncompile.runtime.ops import decode, encode

SEEDS = st.integers(0, 2**16)

# -- random dims ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tree:
    """How a random dim is made: `kind` is "fixed", "free", "product" or "sum"."""

    kind: str
    size: int
    parts: tuple[Tree, ...] = ()

    def build(self, env: Environment) -> Dim:
        """The dim in `env`; every free leaf is an atom of its own."""
        if self.kind == "fixed":
            return fixed(self.size)
        if self.kind == "free":
            return env.fresh(self.size)
        parts = [part.build(env) for part in self.parts]
        return (
            (Sum(tuple(parts)),) if self.kind == "sum" else tuple(factor for dim in parts for factor in dim)
        )


@st.composite
def trees(draw: DrawFn, n: int, depth: int = 2) -> Tree:
    """A random dim of size `n`."""
    factors = [d for d in range(2, n) if n % d == 0]
    kinds = (
        ["free", "free", "fixed"]
        + ["product"] * (2 * bool(depth and factors))
        + ["sum"] * (2 * (depth > 0 and n > 2))
    )
    kind = draw(st.sampled_from(kinds))
    if kind in ("free", "fixed"):
        return Tree(kind, n)
    if kind == "product":
        outer = draw(st.sampled_from(factors))
        return Tree(kind, n, (draw(trees(outer, depth - 1)), draw(trees(n // outer, depth - 1))))
    cuts = sorted(draw(st.sets(st.integers(1, n - 1), min_size=1, max_size=2)))
    sizes = [b - a for a, b in pairwise((0, *cuts, n))]
    return Tree(kind, n, tuple(draw(trees(m, depth - 1)) for m in sizes))


def some_trees() -> SearchStrategy[Tree]:
    """A random dim of a size with many divisors."""
    return st.sampled_from((4, 6, 8, 12, 16, 24)).flatmap(trees)


@st.composite
def pairs(draw: DrawFn) -> tuple[Tree, Tree]:
    """Two random dims of one size."""
    n = draw(st.sampled_from((4, 6, 8, 12, 24)))
    return draw(trees(n)), draw(trees(n))


@st.composite
def regroupings(draw: DrawFn, total: int) -> list[int]:
    """Sizes of at least 1 whose product is `total`."""
    sizes = [1] * draw(st.integers(0, 1))
    while total > 1:
        sizes.append(draw(st.sampled_from([d for d in range(2, total + 1) if total % d == 0])))
        total //= sizes[-1]
    return sizes


def refined(env: Environment, dims: Sequence[Dim], data: st.DataObject) -> None:
    """Random unifications and cuts of parts, as other operators of a network would do."""
    for _ in range(data.draw(st.integers(0, 2))):
        dim = data.draw(st.sampled_from(list(dims)))
        n = size(dim)
        if data.draw(st.booleans()):
            env.unify(dim, data.draw(trees(n)).build(env))
            continue
        low, high = sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))
        try:
            env.cut(dim, low, high)
        except Misaligned:
            env.freeze(dim, "a cut does not align")


def resolved(env: Environment, dims: Sequence[Dim]) -> list[Dim]:
    """Normal forms with each free atom replaced by an elastic dim of its own name."""

    def factor(one: Factor) -> Factor:
        if isinstance(one, Sum):
            return Sum(tuple(tuple(map(factor, segment)) for segment in one.segments))
        return Elastic(f"a{one.serial}", one.size) if isinstance(one, Atom) else one

    return [tuple(map(factor, env.normal(dim))) for dim in dims]


def random_widths(dims: Sequence[Dim], data: st.DataObject) -> dict[str, int]:
    """An independent width of at least 1 for every elastic dim in `dims`."""
    found = dict.fromkeys(one for dim in dims for one in elastics(dim))
    return {one.name: data.draw(st.integers(1, one.size), label=one.name) for one in found}


def positions(dims: Sequence[Dim], widths: dict[str, int]) -> list[int]:
    """What stays of an index tensor of this type, row-major."""
    index = torch.arange(prod(map(size, dims))).reshape([size(dim) for dim in dims])
    for axis, dim in enumerate(dims):
        index = index.index_select(axis, kept(dim, widths))
    return index.flatten().tolist()


# -- keeping positions ------------------------------------------------------------------------------


@settings(max_examples=90)
@given(st.data())
def test_kept_commutes_with_reshape(data: st.DataObject) -> None:
    env = Environment()
    dims = [data.draw(some_trees()).build(env) for _ in range(data.draw(st.integers(1, 2)))]
    refined(env, dims, data)
    sizes = data.draw(regroupings(prod(map(size, dims))))
    try:
        reshaped = env.reshape(dims, sizes)
    except Misaligned:
        assume(False)
        raise
    assert [size(dim) for dim in reshaped] == sizes
    before, after = resolved(env, dims), resolved(env, reshaped)
    widths = random_widths(before, data)
    assert positions(before, widths) == positions(after, widths)


@settings(max_examples=60)
@given(some_trees(), st.data())
def test_kept_has_the_active_size_and_full_widths_keep_all(tree: Tree, data: st.DataObject) -> None:
    env = Environment()
    dim = tree.build(env)
    refined(env, [dim], data)
    (final,) = resolved(env, [dim])
    widths = random_widths([final], data)
    index = kept(final, widths)
    assert len(index) == active(final, widths)
    assert index.tolist() == sorted(set(index.tolist()))
    assert kept(final, {}).tolist() == list(range(size(final)))


@settings(max_examples=60)
@given(some_trees(), st.data())
def test_prefix_is_what_kept_says(tree: Tree, data: st.DataObject) -> None:
    """A dim that claims to be a prefix is one at every width; one that does not differs from it somewhere."""
    env = Environment()
    (dim,) = resolved(env, [tree.build(env)])
    claims = is_prefix(dim, {one.name: 1 for one in elastics(dim)})
    tried = [random_widths([dim], data) for _ in range(3)] + [{one.name: 1 for one in elastics(dim)}]
    prefixes = [kept(dim, w).tolist() == list(range(active(dim, w))) for w in tried]
    assert all(prefixes) or not claims


@pytest.mark.parametrize(
    ("dim", "prefix", "positions_at_2"),
    [
        ((Elastic("x", 4),), True, [0, 1]),
        ((Elastic("x", 4), 2), True, [0, 1, 2, 3]),
        ((3, Elastic("x", 4)), False, [0, 1, 4, 5, 8, 9]),
        ((Elastic("x", 3), Elastic("y", 4)), False, [0, 1, 2, 3, 4, 5, 6, 7]),
        ((Sum(((5,), (Elastic("x", 4),))),), True, [0, 1, 2, 3, 4, 5, 6]),
        ((Sum(((Elastic("x", 4),), (2,))),), False, [0, 1, 4, 5]),
        ((Sum(((Elastic("x", 4),), (Elastic("x", 4),))),), False, [0, 1, 4, 5]),
        ((Sum(((Elastic("x", 3),), (2,))), 2), False, [0, 1, 2, 3, 6, 7, 8, 9]),
    ],
)
def test_which_dims_are_prefixes(dim: Dim, prefix: bool, positions_at_2: list[int]) -> None:
    assert is_prefix(dim, {"x": 2, "y": 2} if elastics(dim)[1:] else {"x": 2}) is prefix
    assert kept(dim, {"x": 2}).tolist() == positions_at_2


@settings(max_examples=60)
@given(some_trees(), st.data())
def test_patterns_in_graphs_say_the_same(tree: Tree, data: st.DataObject) -> None:
    env = Environment()
    (dim,) = resolved(env, [tree.build(env)])
    widths = random_widths([dim], data)
    order = list(widths)
    by_operand = {str(i): widths[name] for i, name in enumerate(order)}
    assert kept(decode(encode(dim, order)), by_operand).tolist() == kept(dim, widths).tolist()


# -- sizes ------------------------------------------------------------------------------------------


@settings(max_examples=90)
@given(some_trees(), st.data())
def test_cut_keeps_sizes_and_positions(tree: Tree, data: st.DataObject) -> None:
    env = Environment()
    dim = tree.build(env)
    low, high = sorted(data.draw(st.tuples(*[st.integers(0, tree.size)] * 2)))
    assume(low < high)
    try:
        part = env.cut(dim, low, high)
    except Misaligned:
        assume(False)
        raise
    assert size(part) == high - low
    assert size(env.normal(dim)) == tree.size
    whole, inside = resolved(env, [dim, part])
    widths = random_widths([whole], data)
    expected = [at - low for at in kept(whole, widths).tolist() if low <= at < high]
    assert kept(inside, widths).tolist() == expected


@settings(max_examples=60)
@given(some_trees(), st.data())
def test_split_is_a_product(tree: Tree, data: st.DataObject) -> None:
    env = Environment()
    dim = tree.build(env)
    outer = data.draw(st.sampled_from([d for d in range(1, tree.size + 1) if tree.size % d == 0]))
    try:
        first, second = env.split(dim, outer)
    except Misaligned:
        assume(False)
        raise
    assert (size(first), size(second)) == (outer, tree.size // outer)
    whole, product = resolved(env, [dim, first + second])
    widths = random_widths([whole], data)
    assert kept(whole, widths).tolist() == kept(product, widths).tolist()


@settings(max_examples=60)
@given(some_trees(), st.data())
def test_normal_form(tree: Tree, data: st.DataObject) -> None:
    env = Environment()
    dim = tree.build(env)
    refined(env, [dim], data)
    normal = env.normal(dim)
    assert size(normal) == tree.size
    assert env.normal(normal) == normal
    assert 1 not in normal
    assert not any(isinstance(a, int) and isinstance(b, int) for a, b in pairwise(normal))
    assert set(env.atoms(dim)) == {leaf for leaf in leaves(normal) if isinstance(leaf, Atom)}


@pytest.mark.parametrize("sizes", [[5], [2, 5], [3, 0], [25]])
def test_what_does_not_divide_is_misaligned(sizes: list[int]) -> None:
    env = Environment()
    with pytest.raises(Misaligned):
        env.reshape([env.fresh(12)], sizes)


def test_the_batch_is_rigid() -> None:
    env = Environment()
    batch = env.fresh(BATCH_STAND_IN)
    assert batch == (BATCH,)
    assert env.fresh(4 * BATCH_STAND_IN) == (BATCH, 4)
    tokens = env.fresh(6)
    merged = env.reshape([batch, tokens], [6 * BATCH_STAND_IN])
    assert merged == [batch + tokens]
    with pytest.raises(Misaligned):
        env.split(batch, 2)
    with pytest.raises(Misaligned):
        env.reshape([tokens, batch], [2 * BATCH_STAND_IN, 3])


# -- unification ------------------------------------------------------------------------------------


def canonical(env: Environment, dims: Sequence[Dim]) -> str:
    """Normal forms as text with atoms numbered by first appearance."""
    normal = [env.normal(dim) for dim in dims]
    atoms = list(dict.fromkeys(leaf for dim in normal for leaf in leaves(dim) if isinstance(leaf, Atom)))
    names: dict[Factor, Factor] = {atom: Elastic(f"x{i}", atom.size) for i, atom in enumerate(atoms)}

    def renamed(dim: Dim) -> Dim:
        return tuple(
            Sum(tuple(map(renamed, f.segments))) if isinstance(f, Sum) else names.get(f, f) for f in dim
        )

    return "; ".join(render(renamed(dim)) for dim in normal)


def unified(trees: tuple[Tree, Tree], unify: Callable[[Environment, Dim, Dim], object]) -> str:
    env = Environment()
    a, b = (tree.build(env) for tree in trees)
    unify(env, a, b)
    return canonical(env, [a, b])


@settings(max_examples=60)
@given(pairs())
def test_unify_is_symmetric(both: tuple[Tree, Tree]) -> None:
    forwards = unified(both, lambda env, a, b: env.unify(a, b))
    backwards = unified(both, lambda env, a, b: env.unify(b, a))
    assert forwards == backwards


@settings(max_examples=90)
@given(pairs(), st.data())
def test_unified_dims_keep_the_same_positions(both: tuple[Tree, Tree], data: st.DataObject) -> None:
    env = Environment()
    a, b = (tree.build(env) for tree in both)
    result = env.unify(a, b)
    left, right, returned = resolved(env, [a, b, result])
    widths = random_widths([left, right], data)
    assert kept(left, widths).tolist() == kept(right, widths).tolist() == kept(returned, widths).tolist()


@settings(max_examples=60)
@given(pairs())
def test_unify_is_idempotent(both: tuple[Tree, Tree]) -> None:
    env = Environment()
    a, b = (tree.build(env) for tree in both)
    env.unify(a, b)
    before, mark = canonical(env, [a, b]), env.watermark()
    env.unify(a, b)
    env.unify(b, a)
    assert canonical(env, [a, b]) == before
    assert env.bound_since(mark) == []


def test_unify_of_different_sizes_freezes_both_with_a_reason() -> None:
    env = Environment()
    a, b = env.fresh(4), env.fresh(6)
    env.unify(a, b)
    assert (env.normal(a), env.normal(b)) == ((4,), (6,))
    assert [freeze.reason for freeze in env.reasons(a)] == ["factors do not align: size 4 against 6"]


Sizes = int | tuple[object, ...]


def made(env: Environment, sizes: object) -> Dim:
    """An atom, a product of dims, or a sum where the tuple begins with "+"."""
    if isinstance(sizes, int):
        return env.fresh(sizes)
    assert isinstance(sizes, tuple)
    if sizes[0] == "+":
        return (Sum(tuple(made(env, part) for part in sizes[1:])),)
    return tuple(factor for part in sizes for factor in made(env, part))


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (12, (3, 4), "(x0:3, x1:4); (x0:3, x1:4)"),
        ((2, 6), (4, 3), "(x0:2, x1:2, x2:3); (x0:2, x1:2, x2:3)"),
        ((2, 3), (3, 2), "6; 6"),
        (6, ("+", 2, 4), "(x0:2 + x1:4); (x0:2 + x1:4)"),
        (("+", 2, 4), ("+", 3, 3), "(x0:2 + () + x1:3); (x0:2 + () + x1:3)"),
        (("+", 2, 4), (3, 2), "(x0:2 + (x1:2, x0:2)); ((() + x1:2), x0:2)"),
        (("+", 2, 4), (2, 3), "6; 6"),
        (("+", 6, 6), (2, 6), "(x0:6 + x0:6); (2, x0:6)"),
        (("+", (2, 3), (2, 3)), (2, 6), "((x0:2, x1:3) + (x0:2, x1:3)); (2, x0:2, x1:3)"),
    ],
)
def test_unify_by_example(a: Sizes, b: Sizes, expected: str) -> None:
    env = Environment()
    left, right = made(env, a), made(env, b)
    env.unify(left, right)
    assert canonical(env, [left, right]) == expected


# -- freezing ---------------------------------------------------------------------------------------


@settings(max_examples=90)
@given(pairs(), st.data())
def test_whatever_ends_up_static_has_a_reason(both: tuple[Tree, Tree], data: st.DataObject) -> None:
    """Dims that were free at first and hold no atom at the end say why, at the node that decided it."""
    env = Environment()
    free = env.fresh(both[0].size)
    a, b = (tree.build(env) for tree in both)
    with env.at("unify", lambda: "net.py:1: x = a + b"):
        env.unify(free, a)
        refined(env, [a, b], data)
        env.unify(a, b)
    reasons = env.reasons(free)
    assert env.atoms(free) or reasons
    assert all(r.reason and r.node == "unify" and r.line == "net.py:1: x = a + b" for r in reasons)


@settings(max_examples=60)
@given(some_trees(), st.data())
def test_reasons_survive_refinement(tree: Tree, data: st.DataObject) -> None:
    env = Environment()
    dim = tree.build(env)
    refined(env, [dim], data)
    atoms = env.atoms(dim)
    assume(atoms)
    victim = data.draw(st.sampled_from(atoms))
    with env.at("output", lambda: "net.py:7: return x"):
        env.freeze((victim,), "it is part of the model's output")
    refined(env, [dim], data)
    env.unify(dim, data.draw(trees(tree.size)).build(env))
    found = [(r.reason, r.node, r.line) for r in env.reasons(dim)]
    assert ("it is part of the model's output", "output", "net.py:7: return x") in found
    assert victim not in env.atoms(dim)


def test_freezing_is_final_and_spreads() -> None:
    env = Environment()
    a, b, c = env.fresh(8), env.fresh(8), env.fresh(24)
    env.unify(a, b)
    outer, _ = env.split(c, 3)
    env.freeze(b, "padding reads it")
    env.unify(c, outer + a)
    assert env.normal(a) == (8,)
    assert [len(env.atoms(dim)) for dim in (a, b, c)] == [0, 0, 1]
    assert [r.reason for r in env.reasons(a)] == ["padding reads it"]
    assert "meets the fixed size 8" in [r.reason for r in env.reasons(c)]
