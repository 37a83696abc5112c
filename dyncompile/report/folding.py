"""A deep network in few blocks: what repeats, decisions included, is drawn once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dyncompile.report.network import Block, Decider, Network
from dyncompile.report.patterns import fold, template

_PERIOD = 8
"""Blocks that repeat together, at most."""
_TIMES = 3
"""What comes fewer times in a row stays as it is."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Blocks from `start` on, `times` times a period of `length`."""

    start: int
    length: int
    times: int

    def members(self, offset: int) -> range:
        """The blocks that become the one at `offset` of the period."""
        return range(self.start + offset, self.start + self.length * self.times, self.length)


def folded(network: Network, most: int = 40) -> Network:
    """The network as it is if it has at most so many blocks; else with its repetitions taken together.

    Blocks are alike if they differ in numbers of their names only, and are decided alike from alike places.
    """
    if len(network.blocks) <= most:
        return network
    signatures = [_signature(network, index) for index in range(len(network.blocks))]
    runs = _runs(signatures)
    groups = [run.members(offset) for run in runs for offset in range(run.length)]
    blocks = tuple(_together([network.blocks[i] for i in group]) for group in groups)
    place = {old: new for new, group in enumerate(groups) for old in group}
    return replace(network, blocks=blocks, deciders=_deciders(network, place))


def _signature(network: Network, index: int) -> tuple[object, ...]:
    """Equal for blocks that may be drawn as one."""
    block = network.blocks[index]
    acted = [
        (template(one.label) if one.after == index else number, one.acts[index])
        for number, one in enumerate(network.deciders)
        if index in one.acts
    ]
    here = [
        (template(one.label), sorted(i - index for i in one.acts))
        for one in network.deciders
        if one.after == index
    ]
    alike = replace(
        block, name=template(block.name), macs=round(block.macs, 9), moved=round(block.moved, 9), notes=()
    )
    return alike, tuple(map(repr, acted)), tuple(map(repr, here))


def _runs(signatures: Sequence[object]) -> list[_Run]:
    runs: list[_Run] = []
    at = 0
    while at < len(signatures):
        found = (_Run(at, length, _times(signatures, at, length)) for length in range(1, _PERIOD + 1))
        best = max(found, key=lambda run: (run.length * run.times if run.times >= _TIMES else 0, -run.length))
        runs.append(best if best.times >= _TIMES else _Run(at, 1, 1))
        at += runs[-1].length * runs[-1].times
    return runs


def _times(signatures: Sequence[object], at: int, length: int) -> int:
    period, times = signatures[at : at + length], 1
    while signatures[at + times * length : at + (times + 1) * length] == period:
        times += 1
    return times


def _together(blocks: Sequence[Block]) -> Block:
    return replace(
        blocks[0],
        name=fold(block.name for block in blocks),
        macs=sum(block.macs for block in blocks),
        moved=sum(block.moved for block in blocks),
        notes=tuple(dict.fromkeys(note for block in blocks for note in block.notes)),
        count=len(blocks),
    )


def _deciders(network: Network, place: Mapping[int, int]) -> tuple[Decider, ...]:
    """Deciders at their new places; those that fell together as one."""
    last = len(set(place.values()))
    alike: dict[tuple[int, str], list[Decider]] = {}
    for one in network.deciders:
        alike.setdefault((place.get(one.after, last), template(one.label)), []).append(one)
    return tuple(
        replace(
            group[0],
            label=fold(one.label for one in group) if len(group) > 1 else group[0].label,
            count=sum(one.count for one in group),
            after=after,
            acts={place[i]: hows for one in group for i, hows in one.acts.items()},
            by=group[0].by if len(group) == 1 else _fold_words([one.by for one in group]),
        )
        for (after, _), group in alike.items()
    )


def _fold_words(texts: Sequence[str]) -> str:
    """One text for several: a pattern where they differ in numbers only, else the first of them."""
    same = {template(text) for text in texts}
    return fold(texts) if len(same) == 1 else f"{texts[0]} and {len(texts) - 1} more"
