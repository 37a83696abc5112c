"""Unification over the algebra of dimensions: one environment for all graphs of a program.

Freezing binds an atom to its size and remembers why, so that every dimension that stays static has a reason
and a source line. Sizes are concrete, hence no occurs check: a strict part of a dim is strictly smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

from dyncompile.analysis.dims.algebra import (
    Atom,
    Dim,
    Factor,
    Misaligned,
    Rigid,
    Sum,
    factor_size,
    fixed,
    leaves,
    render,
    size,
)


@dataclass(frozen=True, slots=True)
class Freeze:
    """Why an atom cannot move: the reason, the node that decided it, and the user's source line if known."""

    reason: str
    node: str
    line: str


Place = tuple[str, Callable[[], str]]


def _nowhere() -> str:
    return ""


class Environment:
    """Bindings of atoms to dims. `at` names the node under inference, for the reasons of freezes."""

    def __init__(self) -> None:
        self._bindings: dict[Atom, Dim] = {}
        self._history: dict[Atom, Dim] = {}
        self._frozen: dict[Atom, Freeze] = {}
        self._log: list[tuple[Atom, Place]] = []
        self._sums: dict[int, tuple[Sum, int, Dim]] = {}  # normal forms, valid until the next binding
        self._here: Place = ("", _nowhere)
        self._serial = 0

    @contextmanager
    def at(self, node: str, line: Callable[[], str]) -> Generator[None]:
        """Give freezes inside the block this node and source line (asked for only if needed)."""
        outer, self._here = self._here, (node, line)
        try:
            yield
        finally:
            self._here = outer

    # -- reading ------------------------------------------------------------------------------

    def normal(self, dim: Dim) -> Dim:
        """`dim` with every binding followed, products and sums flattened, neighboring ints merged."""
        if self._is_normal(dim):
            return dim
        out: list[Factor] = []
        for factor in dim:
            for part in self._normal_factor(factor):
                if isinstance(part, int) and out and isinstance(out[-1], int):
                    out[-1] *= part
                elif part != 1:
                    out.append(part)
        return tuple(out)

    def _is_normal(self, dim: Dim) -> bool:
        """Whether `dim` is surely in normal form: the frequent case, kept cheap."""
        after_int = False
        for factor in dim:
            kind = type(factor)
            if kind is int:
                if after_int or factor == 1:
                    return False
                after_int = True
            elif kind is Sum or factor in self._bindings:
                return False
            else:
                after_int = False
        return True

    def _normal_factor(self, factor: Factor) -> Dim:
        if isinstance(factor, Sum):
            known = self._sums.get(id(factor))
            if known is None or known[1] != len(self._log):
                known = self._sums[id(factor)] = (factor, len(self._log), self._normal_sum(factor))
            return known[2]
        if not isinstance(factor, Atom) or factor not in self._bindings:
            return (factor,)
        bound = self.normal(self._bindings[factor])
        self._bindings[factor] = bound
        return bound

    def _normal_sum(self, factor: Sum) -> Dim:
        segments: list[Dim] = []
        for segment in map(self.normal, factor.segments):
            if size(segment) == 0:
                continue
            nested = segment[0] if len(segment) == 1 else None
            for part in nested.segments if isinstance(nested, Sum) else (segment,):
                if segments and _is_int(segments[-1]) and _is_int(part):
                    segments[-1] = fixed(size(segments[-1]) + size(part))
                else:
                    segments.append(part)
        if not segments:
            return (0,)
        return segments[0] if len(segments) == 1 else (Sum(tuple(segments)),)

    def atoms(self, dim: Dim) -> list[Atom]:
        """The free atoms of a dim, each once, in order."""
        return list(dict.fromkeys(leaf for leaf in leaves(self.normal(dim)) if isinstance(leaf, Atom)))

    def reasons(self, dim: Dim) -> list[Freeze]:
        """Why the frozen parts of `dim` (as first created) cannot move."""
        found: dict[Freeze, None] = {}
        todo: list[Factor] = list(dim)
        while todo:
            factor = todo.pop(0)
            if isinstance(factor, Sum):
                todo += [part for segment in factor.segments for part in segment]
            elif isinstance(factor, Atom) and factor in self._frozen:
                found[self._frozen[factor]] = None
            elif isinstance(factor, Atom):
                todo += self._history.get(factor, ())
        return list(found)

    def ancestry(self, dim: Dim) -> Iterator[Atom]:
        """Every atom that `dim` ever was made of, bound ones included."""
        for factor in dim:
            if isinstance(factor, Sum):
                for segment in factor.segments:
                    yield from self.ancestry(segment)
            elif isinstance(factor, Atom):
                yield factor
                yield from self.ancestry(self._history.get(factor, ()))

    def watermark(self) -> int:
        """A point in time, for `bound_since`."""
        return len(self._log)

    def bound_since(self, watermark: int) -> list[tuple[Atom, str, str]]:
        """(atom, node, source line) of every binding after a watermark."""
        return [(atom, node, line()) for atom, (node, line) in self._log[watermark:]]

    # -- writing ------------------------------------------------------------------------------

    def fresh(self, n: int) -> Dim:
        """A dim of size `n` that may move; 0, 1 and multiples of the batch are not elastic."""
        if n < 2 or fixed(n) != (n,):
            return fixed(n)
        self._serial += 1
        return (Atom(n, self._serial),)

    def freeze(self, dim: Dim, reason: str) -> None:
        """Bind every free atom of `dim` to its size."""
        for atom in self.atoms(dim):
            self._freeze_atom(atom, reason)

    def _freeze_atom(self, atom: Atom, reason: str) -> None:
        self._set(atom, fixed(atom.size))
        node, line = self._here
        self._frozen[atom] = Freeze(reason, node, line())

    def _bind(self, atom: Atom, dim: Dim) -> None:
        if _is_int(dim):
            self._freeze_atom(atom, f"meets the fixed size {render(dim)}")
            return
        other = dim[0] if len(dim) == 1 else None
        if isinstance(other, Atom) and other.serial > atom.serial:
            atom, dim = other, (atom,)  # the older atom stands for both: parameters keep theirs
        self._set(atom, dim)

    def _set(self, atom: Atom, dim: Dim) -> None:
        self._bindings[atom] = self._history[atom] = dim
        self._log.append((atom, self._here))

    def unify(self, a: Dim, b: Dim) -> Dim:
        """Make two dims move together and return the result; parts without a common refinement are frozen."""
        try:
            self.align(a, b)
        except Misaligned as error:
            self.freeze(a, f"factors do not align: {error}")
            self.freeze(b, f"factors do not align: {error}")
        return self.normal(a)

    def align(self, a: Dim, b: Dim) -> None:
        """As `unify`, but raises `Misaligned` instead of freezing the two."""
        a, b = self.normal(a), self.normal(b)
        if size(a) != size(b):
            raise Misaligned(f"size {size(a)} against {size(b)}")
        while a and b:
            if self._align_whole(a, b) or self._align_whole(b, a):
                return
            a, b = self._align_heads(a, b)

    def _align_whole(self, a: Dim, b: Dim) -> bool:
        """Settle `a` ~ `b` at once where `a` is a single factor that can take all of `b`."""
        if len(a) != 1 or a == b:
            return a == b
        if isinstance(a[0], Atom):
            self._bind(a[0], b)
            return True
        if isinstance(a[0], Sum) and not (len(b) == 1 and isinstance(b[0], Atom)):
            self._align_sum(a[0], b)
            return True
        return False

    def _align_heads(self, a: Dim, b: Dim) -> tuple[Dim, Dim]:
        """Unify the leading factors; returns what is left of both."""
        left, right = factor_size(a[0]), factor_size(b[0])
        if left == right:
            self._align_factors(a[0], b[0])
            return self.normal(a[1:]), self.normal(b[1:])
        if left < right:
            b, a = self._align_heads(b, a)
            return a, b
        outer, inner = self._split_factor(a[0], right)
        self.align(outer, (b[0],))
        return self.normal(inner + a[1:]), self.normal(b[1:])

    def _align_factors(self, a: Factor, b: Factor) -> None:
        if a is b:
            return
        if isinstance(b, Atom) and not isinstance(a, Atom):
            a, b = b, a
        if isinstance(a, Atom):
            self._bind(a, (b,))
        elif isinstance(a, int | Rigid):
            self.freeze((b,), f"meets the fixed size {render((a,))}")
        elif isinstance(a, Sum):
            self._align_sum(a, (b,))

    def _align_sum(self, total: Sum, dim: Dim) -> None:
        offset = 0
        for segment in total.segments:
            end = offset + size(segment)
            self.unify(segment, self.cut(dim, offset, end))
            offset = end

    # -- taking apart -------------------------------------------------------------------------

    def split(self, dim: Dim, outer: int) -> tuple[Dim, Dim]:
        """`dim` as (outer part of size `outer`, inner part)."""
        if outer == 0 or size(dim) % outer:
            raise Misaligned(f"{render(dim)} is not divisible by {outer}")
        first, second = self.reshape([dim], [outer, size(dim) // outer])
        return first, second

    def _split_factor(self, factor: Factor, outer: int) -> tuple[Dim, Dim]:
        n = factor_size(factor)
        if n % outer or isinstance(factor, Rigid):
            raise Misaligned(f"{render((factor,))} is not divisible by {outer}")
        inner = n // outer
        if isinstance(factor, Atom):
            first, second = self.fresh(outer), self.fresh(inner)
            self._set(factor, first + second)
            return first, second
        if isinstance(factor, Sum):
            return self._split_sum(factor, outer, inner)
        return fixed(outer), fixed(inner)

    def _split_sum(self, total: Sum, outer: int, inner: int) -> tuple[Dim, Dim]:
        """A sum as outer x inner: segments of whole inners, else equal chunks that must have one type."""
        if all(size(segment) % inner == 0 for segment in total.segments):
            parts = [self.split(segment, size(segment) // inner) for segment in total.segments]
            for _, other in parts[1:]:
                self.unify(parts[0][1], other)
            return self.normal((Sum(tuple(first for first, _ in parts)),)), self.normal(parts[0][1])
        # Chunks first, unified after: without this case inference depended on the order of the graphs
        # (shuffles).
        chunks = [self.cut((total,), i * inner, (i + 1) * inner) for i in range(outer)]
        for chunk in chunks[1:]:
            self.unify(chunks[0], chunk)
        return fixed(outer), self.normal(self.cut((total,), 0, inner))

    def reshape(self, dims: Sequence[Dim], sizes: Sequence[int]) -> list[Dim]:
        """Row-major regrouping of dims into dims of the given sizes; raises `Misaligned`."""
        if prod(map(size, dims)) != prod(sizes) or 0 in sizes:
            raise Misaligned(f"{[size(dim) for dim in dims]} into {list(sizes)}")
        rest = self.normal(tuple(factor for dim in dims for factor in dim))
        out: list[Dim] = []
        for wanted in sizes:
            taken, rest = self._take(rest, wanted)
            out.append(taken)
        return [self.normal(dim) for dim in out]

    def _take(self, rest: Dim, wanted: int) -> tuple[Dim, Dim]:
        """Leading factors of `rest` with exactly `wanted` positions, and what follows."""
        taken: tuple[Factor, ...] = ()
        while wanted > 1:
            rest = self.normal(rest)
            head, n = rest[0], factor_size(rest[0])
            if wanted % n == 0:
                taken, rest, wanted = taken + (head,), rest[1:], wanted // n  # noqa: RUF005
            elif n % wanted == 0:
                outer, inner = self._split_factor(head, wanted)
                taken, rest, wanted = taken + outer, inner + rest[1:], 1
            else:
                raise Misaligned(f"{render(rest)} has no leading part of size {wanted}")
        return self.normal(taken), rest

    def cut(self, dim: Dim, low: int, high: int) -> Dim:
        """The positions [low, high) of a dim; refines atoms where the borders fall inside one."""
        dim = self.normal(dim)
        n = size(dim)
        if low >= high:
            return (0,)
        if (low, high) == (0, n):
            return dim
        if len(dim) == 1:
            return self._cut_factor(dim[0], low, high)
        inner = size(dim[1:])
        if low % inner == 0 and high % inner == 0:
            return self.normal(self.cut(dim[:1], low // inner, high // inner) + dim[1:])
        if low // inner == (high - 1) // inner:
            self.freeze(dim[:1], "one position of it is cut out")
            return self.cut(dim[1:], low % inner, high - low // inner * inner)
        raise Misaligned(f"[{low}, {high}) of {render(dim)}")

    def _cut_factor(self, factor: Factor, low: int, high: int) -> Dim:
        if isinstance(factor, Atom):
            sizes = [n for n in (low, high - low, factor.size - high) if n]
            if max(sizes) == 1:
                self._freeze_atom(factor, "it is cut into single positions")
                return ()
            parts = tuple(self.fresh(n) for n in sizes)
            self._set(factor, (Sum(parts),))
            return parts[1 if low else 0]
        if not isinstance(factor, Sum):
            return fixed(high - low)
        parts, offset = list[Dim](), 0
        for segment in factor.segments:
            n = size(segment)
            begin, end = max(low - offset, 0), min(high - offset, n)
            if begin < end:
                parts.append(self.cut(segment, begin, end))
            offset += n
        return self.normal((Sum(tuple(parts)),))


def _is_int(dim: Dim) -> bool:
    return all(isinstance(factor, int) for factor in dim)
