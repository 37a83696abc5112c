"""Row-grouped execution: at each cut rows part by decision, parts that nothing tells apart go on together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dyncompile.analysis.dims.call import Type
from dyncompile.policies import Policy
from dyncompile.program import Choice, Decision, Route
from dyncompile.runtime.blocks import rows_at_once, run_in_blocks
from dyncompile.runtime.rows import join_rows, select_rows
from dyncompile.runtime.segment import Outlet, Segment
from dyncompile.runtime.steering import Ask, Group, Steered, decision_of, split_rows, way_of


@dataclass(frozen=True)
class Part:
    """Rows that have gone the same way so far, and the values that they carry."""

    group: Group
    values: Mapping[str, Any]

    @property
    def rows(self) -> Tensor:
        """Positions in the batch: int64 [n]."""
        return self.group.rows


@dataclass(frozen=True)
class Finished:
    """Flat outputs of each part and what was decided."""

    parts: tuple[tuple[Tensor, Sequence[Any]], ...]
    route: Route
    logits: Mapping[str, Tensor]


class SparseRun:
    """One batch through all segments."""

    def __init__(
        self, segments: Sequence[Segment], types: Mapping[str, Type], choices: Mapping[str, Choice]
    ) -> None:
        self._segments, self._types, self._choices = segments, types, choices
        self._decided: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._logits: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._all = torch.arange(0)

    def run(self, inputs: Mapping[str, Any], rows: int, policy: Policy, planned: Route) -> Finished:
        """Run `inputs` (by name) of `rows` rows; choices that `planned` lacks are decided on the way."""
        self._all = torch.arange(rows)
        parts = [Part(Group(self._all, {}), inputs)]
        outputs: list[Sequence[Any]] = []
        left: list[tuple[Tensor, Sequence[Any]]] = []
        ask = partial(self._ask, policy, planned)
        for segment in self._segments:
            parts = self._merged(parts, segment)
            parts = [new for part in parts for new in self._split(part, segment, ask)]
            left += self._stopped(parts, segment, ask)
            parts = [part for part in parts if _outlet(part, segment) is None]
            advanced = [self._advance(part, segment, ask) for part in parts]
            outputs = [given for _, given in advanced]
            parts = [
                Part(group, {**part.values, **dict(zip(segment.gives, given, strict=False))})
                for part, (group, given) in zip(parts, advanced, strict=True)
            ]
        left += [(part.rows, out) for part, out in zip(parts, outputs, strict=True)]
        for name in self._choices:  # what nothing asked for: rows skip what it decides, or have left before
            missing = self._missing(name, rows)
            if len(missing) or name not in self._decided:
                ask(name, missing, None)
        for known in self._logits.values():  # what rows have left before has no logits of theirs
            if self._is_whole(known):
                continue
            missing = _others([at for at, _ in known], rows)
            known.append((missing, known[0][1].new_full((len(missing), known[0][1].shape[1]), torch.nan)))
        return Finished(tuple(left), self._in_order(self._decided), self._in_order(self._logits))

    def _missing(self, name: str, rows: int) -> Tensor:
        """Rows for which a choice was not decided: int64 [n]."""
        known = self._decided.get(name, [])
        return self._all[:0] if self._is_whole(known) else _others([at for at, _ in known], rows)

    def _is_whole(self, known: Sequence[tuple[Tensor, Tensor]]) -> bool:
        """Whether values of all rows came at once, in the order of the batch."""
        return len(known) == 1 and known[0][0] is self._all

    def _in_order(self, found: Mapping[str, list[tuple[Tensor, Tensor]]]) -> dict[str, Tensor]:
        """Values of all parts, in the order of the batch."""
        out: dict[str, Tensor] = {}
        for name, parts in found.items():
            if self._is_whole(parts):
                out[name] = parts[0][1]
                continue
            order = torch.cat([rows for rows, _ in parts]).argsort()
            values = torch.cat([value.to(parts[0][1].device) for _, value in parts])
            out[name] = values[order.to(values.device)]
        return out

    def _stopped(
        self, parts: Sequence[Part], segment: Segment, ask: Ask
    ) -> list[tuple[Tensor, Sequence[Any]]]:
        """Rows that stop at the segment's start, with their outputs."""
        found: list[tuple[Tensor, Sequence[Any]]] = []
        for part in parts:
            outlet = _outlet(part, segment)
            if outlet is not None:
                steered = Steered(part.rows, dict(part.group.decisions), ask)
                values = [part.values[name] for name in outlet.takes]
                found.append((part.rows, outlet.forward(steered, *values)))
        return found

    def _advance(self, part: Part, segment: Segment, ask: Ask) -> tuple[Group, Sequence[Any]]:
        """The part with what was decided on the way, and what the segment gives."""
        steered = Steered(part.rows, dict(part.group.decisions), ask)
        values = [part.values[name] for name in segment.takes]
        most, count = rows_at_once(segment.row_bytes, values), len(part.rows)
        if not most or count <= most:
            return Group(part.rows, steered.decisions), segment.forward(steered, *values)
        given = run_in_blocks(
            lambda at, own: segment.forward(steered.narrowed(at), *own),
            values,
            ([self._types.get(name) for name in segment.takes], self._given_types(segment)),
            count,
            most,
        )
        return Group(part.rows, steered.decisions), given

    def _given_types(self, segment: Segment) -> list[Type]:
        return [self._types.get(name) for name in segment.gives]

    def _merged(self, parts: list[Part], segment: Segment) -> list[Part]:
        """Parts that differ in no choice that is still alive become one."""
        alike: dict[tuple[tuple[float, ...], ...], list[Part]] = {}
        alive = sorted(segment.alive)
        for part in parts:
            key = tuple(way_of(part.group.decisions[name]) for name in alive)
            alike.setdefault(key, []).append(part)
        return [self._joined(same, segment) for same in alike.values()]

    def _joined(self, parts: Sequence[Part], segment: Segment) -> Part:
        first = parts[0]
        if len(parts) == 1:
            return Part(first.group, {name: first.values[name] for name in segment.live})
        values = {
            name: join_rows([part.values[name] for part in parts], self._types.get(name))
            for name in segment.live
        }
        known = [name for name in first.group.decisions if all(name in p.group.decisions for p in parts)]
        decisions = {
            name: decision_of(torch.cat([part.group.decisions[name].rows for part in parts]))
            for name in known
        }
        return Part(Group(torch.cat([part.rows for part in parts]), decisions), values)

    def _split(self, part: Part, segment: Segment, ask: Ask) -> list[Part]:
        """The part by what is decided at the segment's start."""
        if not segment.choices:
            return [part]
        decided: list[tuple[Choice, Tensor]] = []
        for name in segment.choices:
            logits = part.values[segment.logits[name]] if name in segment.logits else None
            decided.append((self._choices[name], ask(name, part.rows, logits)))
        groups = split_rows(part.group, decided, segment.choices)
        if len(groups) == 1:
            return [Part(Group(part.rows, {**part.group.decisions, **groups[0].decisions}), part.values)]
        return [self._selected(part, group) for group in groups]

    def _ask(
        self, policy: Policy, planned: Route, name: str, positions: Tensor, logits: Tensor | None
    ) -> Tensor:
        """What is planned for the rows at `positions`, or what the policy says; kept for the record."""
        if name in planned:
            rows = planned[name]
            rows = rows if positions is self._all else rows[positions.to(rows.device)]
        else:
            if logits is not None:
                self._logits.setdefault(name, []).append((positions, logits))
            rows = policy.decide(self._choices[name], len(positions), logits)
        self._decided.setdefault(name, []).append((positions, rows))
        return rows

    def _selected(self, part: Part, group: Group) -> Part:
        count = len(part.rows)
        values = {
            name: select_rows(value, self._types.get(name), group.rows, count)
            for name, value in part.values.items()
        }
        earlier = {
            name: Decision(one.rows[group.rows.to(one.rows.device)], one.index)
            for name, one in part.group.decisions.items()
        }
        return Part(Group(part.rows[group.rows], {**earlier, **group.decisions}), values)


def _outlet(part: Part, segment: Segment) -> Outlet | None:
    """Through which exit the rows of a part leave at a segment's start; None if they go on."""
    stops = (
        one for choice, one in segment.outlets.items() if bool((part.group.decisions[choice].rows > 0).any())
    )
    return next(stops, None)


def _others(known: Sequence[Tensor], rows: int) -> Tensor:
    """Positions of a batch that are in none of `known`: int64 [n]."""
    rest = torch.ones(rows, dtype=torch.bool)
    for at in known:
        rest[at] = False
    return rest.nonzero().flatten()
