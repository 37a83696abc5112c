"""The network as inline SVG, from top to bottom: blocks, branches beside the trunk, decisions, their reach.

    input                  a pill on the trunk
    [ conv1        ]       a block on the trunk
    (+)[ layer1.0  ] o     a branch: what goes past it meets what it gives at the plus; o: a choice acts here
    ------------------ <>  a decision net reads the trunk here; the line under the diamond is its reach

Colors say what is done (`HOWS`), grey is static. Colors and fonts come from the page's style sheet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from dyncompile.report.blocks import TIMES
from dyncompile.report.network import (
    CHANNELS,
    EXIT,
    HOWS,
    KERNEL,
    PATHS,
    SIZE,
    SKIP,
    WIDTH,
    Block,
    Decider,
    Network,
)
from dyncompile.report.sections import percent

_WIDTH = 1080
_TRUNK, _LEFT, _BOX, _RIGHT = 30, 14, 56, 452
_LANE, _STEP = 474, 15
_BAR, _BAR_WIDTH = 880, 130
_ROW, _SHORT, _LINE = 46, 30, 15
_COLORS = (SKIP, PATHS, WIDTH, CHANNELS, KERNEL, EXIT, SIZE)
"""What a block is colored by, the most telling first: exits and sizes act on most of a network."""
_NAME, _WORDS = 34, 60
"""Characters of a block's name and of its operations that fit."""


@dataclass(frozen=True, slots=True)
class _Row:
    """One line of the drawing: a block, a decision, a stage's title, or an end of the trunk."""

    top: float
    height: float
    block: int = -1
    decider: int = -1
    title: str = ""

    @property
    def middle(self) -> float:
        return self.top + self.height / 2


def draw(network: Network) -> str:
    """The drawing; a title for every part says its full name to who points at it."""
    inline = [_is_inline(one) for one in network.deciders]
    rows = list(_rows(network, inline))
    lanes = _lanes(network, rows)
    height = rows[-1].top + rows[-1].height
    text_at = _LANE + _STEP * (max(lanes, default=-1) + 1) + 4
    parts = [f"<path class='trunk' d='M{_TRUNK} {rows[0].middle:g} V{rows[-1].middle:g}'/>"]
    parts.append(f"<text class='faint' x='{_BAR}' y='{rows[0].middle + 4:g}'>share of the MACs</text>")
    parts += _reaches(network, rows, lanes)
    most = max((block.macs for block in network.blocks), default=1.0) or 1.0
    for row in rows:
        if row.block >= 0:
            parts += _block(network, row, lanes, inline, text_at, most)
        elif row.decider >= 0:
            parts += _decision(network.deciders[row.decider], row, lanes[row.decider], text_at)
        elif row.title:
            parts += _title(row)
    return (
        f"<svg class='network' viewBox='0 0 {_WIDTH} {height:g}' role='img' "
        f"aria-label='The network from input to output'>{''.join(parts)}</svg>"
    )


def legend(network: Network) -> str:
    """What the colors and marks that occur stand for."""
    used = {how for one in network.deciders for hows in one.acts.values() for how in hows}
    parts = [
        f"<span><i class='key {how}'></i>{escape(word)}</span>" for how, word in HOWS.items() if how in used
    ]
    marks = (("still", "static"), ("asked", "a decision net reads here"), ("told", "decided from outside"))
    shown = [True, *(any(one.asked is asked for one in network.deciders) for asked in (True, False))]
    parts += [
        f"<span><i class='key {mark}'></i>{word}</span>"
        for (mark, word), show in zip(marks, shown, strict=True)
        if show
    ]
    return f"<p class='legend'>{''.join(parts)}</p>"


# -- layout -----------------------------------------------------------------------------------------


def _is_inline(one: Decider) -> bool:
    """Decides nothing but the block that starts where it reads: it is drawn in that block's row."""
    return set(one.acts) == {one.after}


def _rows(network: Network, inline: Sequence[bool]) -> Iterator[_Row]:
    top = 0.0
    yield _Row(top, _SHORT, title=_input(network))
    top += _SHORT
    staged = len({block.stage for block in network.blocks}) > 1
    for index, block in enumerate(network.blocks):
        if staged and (index == 0 or network.blocks[index - 1].stage != block.stage):
            yield _Row(top, _SHORT, title=f"stage {block.stage + 1}")
            top += _SHORT
        notes = 0
        for number, one in enumerate(network.deciders):
            if one.after == index and inline[number]:
                notes += 1
            elif one.after == index:
                yield _Row(top, _ROW, decider=number)
                top += _ROW
        height = max(_ROW, _LINE * notes + 14)
        yield _Row(top, height, block=index)
        top += height
    for number, one in enumerate(network.deciders):
        if one.after >= len(network.blocks):
            yield _Row(top, _ROW, decider=number)
            top += _ROW
    yield _Row(top, _SHORT, title="output")


def _input(network: Network) -> str:
    return f"input {', '.join(_shape(shape) for shape in network.inputs)}"


def _shape(sizes: Sequence[int]) -> str:
    return TIMES.join(map(str, sizes))


def _lanes(network: Network, rows: Sequence[_Row]) -> list[int]:
    """A lane for every decider, such that no two reaches lie over one another."""
    taken: list[float] = []
    lanes: list[int] = []
    for number in range(len(network.deciders)):
        top, bottom = _reach(network, rows, number)
        lane = next((i for i, until in enumerate(taken) if until < top), len(taken))
        taken[lane : lane + 1] = [bottom]
        lanes.append(lane)
    return lanes


def _reach(network: Network, rows: Sequence[_Row], number: int) -> tuple[float, float]:
    """From where it is decided down to the last block that it acts on."""
    one = network.deciders[number]
    own = [row.middle for row in rows if row.decider == number]
    acted = [row.middle for row in rows if row.block in one.acts]
    ends = [*own, *acted] or [0.0]
    return min(ends), max(ends)


# -- parts ------------------------------------------------------------------------------------------


def _reaches(network: Network, rows: Sequence[_Row], lanes: Sequence[int]) -> Iterator[str]:
    for number, one in enumerate(network.deciders):
        top, bottom = _reach(network, rows, number)
        if bottom > top:
            x = _LANE + _STEP * lanes[number]
            yield f"<path class='reach {_color(one)}' d='M{x} {top:g} V{bottom:g}'/>"


def _color(one: Decider) -> str:
    return next((hows[0] for hows in one.acts.values()), "still")


def _title(row: _Row) -> Iterator[str]:
    end = not row.title.startswith("stage")
    if not end:
        yield (
            f"<path class='rule' d='M{_BOX} {row.middle:g} H{_WIDTH}'/><rect class='ground' x='{_BOX}' "
            f"y='{row.top + 6:g}' width='{8 * len(row.title) + 4}' height='18'/>"
            f"<text class='faint' x='{_BOX}' y='{row.middle + 4:g}'>{escape(row.title)}</text>"
        )
        return
    text = _short(row.title, 52)
    yield (
        f"<g><title>{escape(row.title)}</title><rect class='end' x='{_LEFT}' y='{row.top + 4:g}' "
        f"width='{7.3 * len(text) + 20:g}' height='22' rx='11'/>"
        f"<text class='name' x='{_LEFT + 10}' y='{row.middle + 4:g}'>{escape(text)}</text></g>"
    )


def _block(
    network: Network,
    row: _Row,
    lanes: Sequence[int],
    inline: Sequence[bool],
    text_at: float,
    most: float,
) -> Iterator[str]:
    block = network.blocks[row.block]
    acting = [(n, one) for n, one in enumerate(network.deciders) if row.block in one.acts]
    hows = sorted({how for _, one in acting for how in one.acts[row.block]}, key=_COLORS.index)
    yield from _box(block, row, hows)
    yield from _acts(acting, row, lanes, inline)
    notes = [one for number, one in acting if inline[number]]
    if acting and not notes:
        said = " · ".join(block.notes)
        text = escape(_short(said, int((_BAR - text_at) / 6.2)))
        yield (
            f"<text class='faint' x='{text_at:g}' y='{row.middle + 4:g}'><title>{escape(said)}</title>"
            f"{text}</text>"
        )
    for line, one in enumerate(notes):
        y = row.middle + 4 + _LINE * (line - (len(notes) - 1) / 2)
        room = int((_BAR - text_at) / 6.4)
        label = _short(one.label, room - len(one.columns) - 2)
        yield (
            f"<text x='{text_at:g}' y='{y:g}'><title>{escape(_said(one))}</title>"
            f"<tspan class='name'>{escape(label)}</tspan>"
            f"<tspan class='faint' dx='8'>{escape(_short(one.columns, room - len(label)))}</tspan></text>"
        )
    yield from _bar(block, row, most, hows[0] if hows else "still")


def _box(block: Block, row: _Row, hows: Sequence[str]) -> Iterator[str]:
    top, bottom = row.top + 4, row.top + row.height - 4
    left = _BOX if block.branch else _LEFT
    color = hows[0] if hows else "still"
    if block.branch:
        yield (
            f"<path class='wire' d='M{_TRUNK} {row.top + 1:g} C{_TRUNK} {row.top + 12:g} {_TRUNK + 8} "
            f"{row.middle:g} {_BOX} {row.middle:g} M{_BOX} {row.middle:g} C{_TRUNK + 8} {row.middle:g} "
            f"{_TRUNK} {bottom - 10:g} {_TRUNK} {bottom:g}'/>"
        )
        if block.shortcut:
            corner = f"x='{_TRUNK - 5}' y='{row.middle - 5:g}'"
            yield f"<rect class='past' {corner} width='10' height='10' rx='2'/>"
        yield (
            f"<circle class='plus' cx='{_TRUNK}' cy='{bottom:g}' r='6'/><path class='sign' "
            f"d='M{_TRUNK - 3} {bottom:g} h6 M{_TRUNK} {bottom - 3:g} v6'/>"
        )
    words = _words(block)
    times = f" {TIMES}{block.count}" if block.count > 1 else ""
    name = _short(block.name, _NAME + (6 if not block.branch else 0) - len(times))
    middle = row.middle
    yield (
        f"<g><title>{escape(f'{block.name}: {words}')}</title>"
        f"<rect class='box {color}' x='{left}' y='{top:g}' width='{_RIGHT - left}' "
        f"height='{bottom - top:g}' rx='6'/>"
        f"<path class='edge {color}' d='M{left + 2} {top + 5:g} V{bottom - 5:g}'/>"
        f"<text class='name' x='{left + 12}' y='{middle - 3:g}'>{escape(name)}"
        f"<tspan class='times'>{times}</tspan></text>"
        f"<text class='faint end-at' x='{_RIGHT - 10}' y='{middle - 3:g}'>{_shape(block.shape)}</text>"
        f"<text class='faint' x='{left + 12}' y='{middle + 12:g}'>{escape(_short(words, _WORDS))}</text></g>"
    )


def _words(block: Block) -> str:
    words = " · ".join(block.operations) or "no contraction"
    return f"{words}; shortcut {' · '.join(block.shortcut)}" if block.shortcut else words


def _acts(
    acting: Sequence[tuple[int, Decider]], row: _Row, lanes: Sequence[int], inline: Sequence[bool]
) -> Iterator[str]:
    """A mark on the lane of everyone who acts on a block, tied to the block's box."""
    if acting:
        last = max(_LANE + _STEP * lanes[number] for number, _ in acting)
        yield f"<path class='tie' d='M{_RIGHT} {row.middle:g} H{last}'/>"
    for number, one in acting:
        x, hows = _LANE + _STEP * lanes[number], one.acts[row.block]
        said = f"<title>{escape(_said(one))}</title>"
        if inline[number]:
            yield f"<g>{said}{_diamond(x, row.middle, hows[0], one.asked)}</g>"
            continue
        marks = "".join(
            f"<circle class='dot {how}' cx='{x}' cy='{row.middle:g}' r='{5 - 2.2 * i:g}'/>"
            for i, how in enumerate(hows[:2])
        )
        yield f"<g>{said}{marks}</g>"


def _decision(one: Decider, row: _Row, lane: int, text_at: float) -> Iterator[str]:
    x, room = _LANE + _STEP * lane, int((_WIDTH - text_at) / 6.4)
    y = row.middle
    label = _short(one.label, room // 2)
    yield (
        f"<g><title>{escape(_said(one))}</title><path class='read' d='M{_TRUNK} {y:g} H{x}'/>"
        f"<circle class='tap' cx='{_TRUNK}' cy='{y:g}' r='3.5'/>{_diamond(x, y, _color(one), one.asked)}"
        f"<text x='{text_at:g}' y='{y - 3:g}'><tspan class='name'>{escape(label)}</tspan>"
        f"<tspan class='faint' dx='8'>{escape(_short(one.columns, room - len(label)))}</tspan></text>"
        f"<text class='faint' x='{text_at:g}' y='{y + 12:g}'>{escape(_short(one.by, room))}</text></g>"
    )


def _diamond(x: float, y: float, color: str, asked: bool) -> str:
    kind = "asked" if asked else "told"
    return f"<path class='diamond {kind} {color}' d='M{x} {y - 8:g} l8 8 l-8 8 l-8 -8 Z'/>"


def _said(one: Decider) -> str:
    hows = list(dict.fromkeys(HOWS[how] for acts in one.acts.values() for how in acts))
    return f"{one.label}: {', '.join(hows)}; {one.columns}; {one.by}"


def _bar(block: Block, row: _Row, most: float, color: str) -> Iterator[str]:
    """MACs as a share of the source's; the part that choices move is colored."""
    full, moved = (_BAR_WIDTH * share / most for share in (block.macs, block.moved))
    y = row.middle - 5
    yield (
        f"<g><title>{percent(block.macs)} of the MACs, {percent(block.moved)} in layers that are decided"
        f"</title>"
        f"<rect class='bar rest' x='{_BAR}' y='{y:g}' width='{full:.1f}' height='10' rx='2'/>"
        f"<rect class='bar moved {color}' x='{_BAR}' y='{y:g}' width='{moved:.1f}' height='10' rx='2'/>"
        f"<text class='faint end-at' x='{_WIDTH - 4}' y='{row.middle + 4:g}'>{percent(block.macs)}</text></g>"
    )


def _short(text: str, room: int) -> str:
    """`text` in at most `room` characters: what is in its middle goes first, names differ at their ends."""
    if len(text) <= room:
        return text
    keep = max(room - 1, 2)
    return f"{text[: keep // 3]}…{text[len(text) - (keep - keep // 3) :]}"
