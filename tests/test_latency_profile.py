"""MACs beside time: the reasons that a profile gives on devices that are slow in a known way; the bench."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import dyncompile as dc
from dyncompile.cli.routes import uniform_routes
from dyncompile.latency import Comparison, Profile, Ratio
from dyncompile.latency.bench import bench
from dyncompile.report.timing_plot import TimedPoint, timing_plot
from tests.latency_support import CHANNELS, METHODS, WorkClock, made, timed


def profiled(spec: str, folder: Path, clock: WorkClock) -> Profile:
    dyn = made(spec)
    return dc.profile(dyn, latency=timed(dyn, folder, clock))


def reasons(found: Profile) -> list[str]:
    return [str(finding) for finding in found.findings if finding.choice]


def test_where_time_is_macs_all_is_realized(tmp_path: Path) -> None:
    found = profiled(METHODS["widths"], tmp_path, WorkClock())
    assert [row.label for row in found.rows] == ["0.25", "0.5", "0.75", "1"]
    assert [row.time for row in found.rows] == pytest.approx([row.macs for row in found.rows])
    assert [row.realized for row in found.rows[:3]] == pytest.approx([1, 1, 1])
    assert found.rows[3].realized is None
    assert reasons(found) == []
    assert (found.full, found.contractions) == pytest.approx((1, 1))
    assert found.smallest == pytest.approx((found.rows[0].macs, found.rows[0].time))
    assert json.loads(json.dumps(asdict(found)))["rows"][0]["macs"] == found.rows[0].macs
    assert str(found).splitlines()[2].split() == ["choice", "setting", "MACs", "time", "realized"]


def test_contractions_that_do_not_get_faster(tmp_path: Path) -> None:
    found = profiled(METHODS["widths"], tmp_path, WorkClock(per_mac=0, per_call=1_000_000))
    assert all(row.realized is not None and row.realized < 0.1 for row in found.rows[:3])
    (reason,) = reasons(found)
    assert "contractions do not get faster" in reason
    assert "no multiples of 8: round them" in reason


def test_operators_that_have_no_macs(tmp_path: Path) -> None:
    found = profiled(METHODS["widths"], tmp_path, WorkClock(per_mac=1, per_other=100_000))
    (reason,) = reasons(found)
    assert "in what has no MACs" in reason
    assert any("at full capacity the dynamic model takes" in str(one) for one in found.findings)


def test_decisions_that_cost_more_than_they_save(tmp_path: Path) -> None:
    found = profiled(METHODS["widths"], tmp_path, WorkClock(per_mac=1, prices={"addmm": 10_000}))
    assert found.learned_full > found.full
    assert any("asking the decision nets takes" in str(one) for one in found.findings)


def test_many_switches_are_shown_by_their_share(tmp_path: Path) -> None:
    found = profiled(CHANNELS, tmp_path, WorkClock())
    labels = {row.label for row in found.rows if made(CHANNELS).choices[row.choice].width > 8}
    assert labels == {"25% on", "50% on", "75% on"}
    few = next(row for row in found.rows if row.label.startswith("without"))
    assert few.macs < 1


# -- bench ------------------------------------------------------------------------------------------


def by_work(run: Callable[[], object], reference: Callable[[], object], pairs: int) -> Comparison:
    """A comparison of the MACs that two calls do."""
    counts = [0.0, 0.0]
    for at, call in enumerate((run, reference)):
        with FlopCounterMode(display=False) as counter:
            for _ in range(pairs):
                call()
        counts[at] = counter.get_total_flops()
    ratio = Ratio.of([counts[0] / counts[1]])
    return Comparison(ratio, ratio, pairs)


def test_everything_is_timed_on_the_same_batches() -> None:
    dyn = dc.dynamize(torch.nn.Sequential(*_layers()), "dsnet(divisor=1, minimum=1)", torch.randn(2, 3, 8, 8))
    dyn.eval()
    with torch.no_grad():
        dyn.get_parameter("dyn.gates.width.head.weight").normal_(0, 3)
    batches = [[torch.randn(n, 3, 8, 8)] for n in (4, 2)]
    rows = bench(dyn, uniform_routes(dyn), batches, learned=True, pairs=4, timer=by_work)
    assert [row.name for row in rows[:3]] == ["source", "dynamic at full", "dynamic at smallest"]
    assert len({row.share for row in rows}) >= 5
    for row in rows[:-1]:
        assert row.latency.wall.median == pytest.approx(row.share, rel=1e-6)
    learned = rows[-1]
    assert (learned.group, learned.name) == ("learned", "learned routes")
    assert learned.latency.wall.median == pytest.approx(learned.share, rel=0.02)
    assert min(row.share for row in rows) < learned.share
    assert "learned routes" not in [row.name for row in bench(dyn, {}, batches, pairs=1, timer=by_work)]


def _layers() -> list[torch.nn.Module]:
    torch.manual_seed(0)
    first = torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3), torch.nn.ReLU()
    return [*first, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 5)]


def test_the_plot_is_an_svg_of_its_own() -> None:
    points = [
        TimedPoint("<a> & b", "static", 0.5, Ratio(0.6, 0.5, 0.7)),
        TimedPoint("full", "dynamic", 1.0, Ratio(1.1, 1.0, 1.3)),
    ]
    root = ElementTree.fromstring(timing_plot(points, "time"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    circles = [node for node in root.iter("{http://www.w3.org/2000/svg}circle") if len(node)]
    assert len(circles) == 2
    half, whole = (float(node.attrib["cx"]) for node in circles)
    assert half < whole
    assert "<a> & b" in [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "href" not in timing_plot(points, "time")
