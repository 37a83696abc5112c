"""The tables of README and results are what the results give, and rendering can fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.record import RESULTS
from benchmarks.tables import RENDERERS
from benchmarks.tables.__main__ import DOCUMENTS
from benchmarks.tables.document import blocks, filled
from benchmarks.tables.markdown import MissingResult, table
from benchmarks.tables.numbers import NUMBERS

MACHINE = {"threads": 1, "torch": "2", "processor": "x86_64", "cores": 2}
RATIO = {"median": 1.25, "low": 1.0, "high": 1.5}
TIME = {"cpu": RATIO, "wall": RATIO, "pairs": 3}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_say_what_the_results_give(path: Path) -> None:
    text = path.read_text()
    assert "coverage" in {name.partition("-")[0] for name in blocks(text)}
    assert filled(text, RENDERERS, NUMBERS, RESULTS) == text, "run `python -m benchmarks.tables`"


def test_blocks_are_filled_and_the_rest_stays(tmp_path: Path) -> None:
    text = "a\n<!-- table: one -->\nold\n<!-- table: end -->\nb\n<!-- table: two -->\n<!-- table: end -->\n"
    done = filled(
        text + "<!-- figure: n -->7<!-- end --> of <!-- figure: n --><!-- end -->",
        {"one": lambda path: path.name, "two": lambda _: "2"},
        {"n": lambda _: "8"},
        tmp_path / "results",
    )
    done, _, sentence = done.rpartition("\n")
    done += "\n"
    assert sentence == "<!-- figure: n -->8<!-- end --> of <!-- figure: n -->8<!-- end -->"
    assert done == text.replace("old", "results").replace("two -->\n", "two -->\n2\n")
    assert blocks(done) == {"one": "results\n", "two": "2\n"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<!-- table: one -->\n", "do not pair up"),
        ("<!-- table: end -->\n", "do not pair up"),
        ("<!-- table: one -->\n<!-- table: one -->\n<!-- table: end -->\n", "do not pair up"),
        ("<!-- table: one -->\n<!-- table: end -->\n" * 2, "marked twice"),
        ("<!-- table: nope -->\n<!-- table: end -->\n", "no table is named nope; there are one"),
        ("<!-- figure: two -->1\n", "figures do not pair up"),
        ("<!-- figure: two -->1<!-- end --> <!-- end -->\n", "figures do not pair up"),
        ("<!-- figure: nope -->1<!-- end -->\n", "no figure is named nope; there are two"),
    ],
)
def test_bad_marks_are_errors(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        filled(text, {"one": lambda _: ""}, {"two": lambda _: ""}, tmp_path)


@pytest.mark.parametrize("render", [*RENDERERS.values(), *NUMBERS.values()], ids=[*RENDERERS, *NUMBERS])
def test_without_results_there_is_an_error(render: Callable[[Path], str], tmp_path: Path) -> None:
    with pytest.raises(MissingResult, match="run `"):
        render(tmp_path)


def test_columns_are_aligned() -> None:
    assert table(("a", "bb"), [("ccc", "1")]).splitlines() == ["| a   | bb |", "|-----|---:|", "| ccc |  1 |"]


def outcome(**changes: Any) -> dict[str, Any]:
    one = {"seconds": 2.0, "difference": 0.0, "elastic": 0.5, "supernet": 1.0, "skippable": 0.25}
    return {**one, "blocks": 3, "smallest": "", **changes}


def rendered(name: str, content: dict[str, Any], folder: Path, file: str = "") -> list[str]:
    path = folder / f"{file or name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": MACHINE, **content}))
    return RENDERERS[name](folder).splitlines()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_what_is_not_converted_counts_as_nothing(tmp_path: Path) -> None:
    models = {
        "a": {"dyncompile": outcome(), "ModelOpt": outcome(difference=1e-3), "Torch-Pruning": outcome()},
        "b": {
            "dyncompile": outcome(),
            "ModelOpt": {"error": "x"},
            "Torch-Pruning": outcome(smallest="not done after 9 s"),
        },
    }
    models["a"]["Torch-Pruning"]["difference"] = None
    limits = {"CPU seconds": 9, "bytes": 2**31}
    lines = rendered("coverage", {"models": models, "limits": limits}, tmp_path)
    assert cells(lines[2]) == ["dyncompile", "2", "2", "50.0 %", "100.0 %", "2", "25.0 %", "2.0"]
    assert cells(lines[3]) == ["ModelOpt", "1", "0", "25.0 %", "50.0 %", "1", "12.5 %", "2.0"]
    assert cells(lines[4])[:4] == ["Torch-Pruning", "1", "-", "25.0 %"]
    assert "Not converted by ModelOpt: `b`." in lines
    assert "1 of 1 failures of Torch-Pruning met the limits of 9 s of CPU time or 2 GiB." in lines[-3]
    assert "failures of ModelOpt" not in lines[-3]
    assert "On the 1 models that ModelOpt converts, parameters" in lines[-3]
    assert "50.0 % of all by it, 50.0 % by dyncompile behind gates, 100.0 % as a supernet" in lines[-3]
    assert cells(RENDERERS["coverage-models"](tmp_path).splitlines()[3]) == [
        "`b`",
        "50 % / 3 / 2.0",
        "-",
        "-",
    ]


def test_only_an_exact_count_is_written_as_1(tmp_path: Path) -> None:
    one = {"derived": 2_000_000, "ours": 2_000_000, "torch, no_grad": 1_999_999.0, "torch, unfused": 2e6}
    case = {**one, "fvcore": 1e6, "fvcore, contractions": 0.0, "unmodeled": ["aten.x"]}
    lines = rendered("counting", {"cases": {"LSTM": case}}, tmp_path)
    assert cells(lines[2]) == ["LSTM", "2.0 M", "1", "1.000", "1", "0.500", "0.000"]
    assert "LSTM: aten.x" in "".join(lines)


def test_checkpoints_before_and_after(tmp_path: Path) -> None:
    one = {
        "keys": 10,
        "largest difference of outputs at full": 0.0,
        "file reduced back bit for bit": True,
        "smallest share of MACs": 0.25,
        "CPU seconds to convert and verify": 12.3,
    }
    scored = {
        "task": "digits named right",
        "samples": 10000,
        "score of the source": 0.99,
        "score at full": 0.5,
    }
    loaded = {"largest difference after loading": 0.0, "CPU seconds to load": 3.2}
    apart = {"largest difference after loading": 0.5}
    figures = {
        "b dsnet": {**one, **loaded, "file reduced back bit for bit": False, **apart},
        "a exits": {"refused": "no head"},
        "a dsnet": {**one, **scored, **loaded},
        "c dsnet": one,
    }
    lines = rendered("checkpoints", {"checkpoints": figures}, tmp_path)
    same, lost, earlier = (cells(line) for line in lines[2:5])
    row = ["a, `dsnet`", "10", "0", "99.00 % / 50.00 %", "same bits, 3 s", "bit for bit", "25.0 %", "12"]
    assert same == row
    assert lost[3:6] == ["-", "**0.5 apart**", "**no**"]
    assert earlier[4] == "not run yet"
    assert "a: 10,000 digits named right." in "\n".join(lines)
    assert "Refused: a exits: no head." in lines


def test_realized_savings_by_rate(tmp_path: Path) -> None:
    rows = {
        "gates, all kept, batch 1, deployed": {"macs": 1.01, "time": TIME, "own": TIME},
        "skip 0%, batch 1, deployed": {"macs": 1.0, "time": TIME, "own": TIME},
        "skip 50%, batch 1, deployed": {
            "macs": 0.5,
            "time": TIME,
            "own": TIME,
            "realized": 0.8,
            "realized_own": 0.6,
        },
        "skip 25%, batch 1, plain": {
            "macs": 0.75,
            "time": TIME,
            "own": TIME,
            "realized": 0.7,
            "realized_own": 0.9,
        },
    }
    lines = rendered("skipping", {"models": {"timm:x": rows}}, tmp_path)
    both = ["1.25 ± 0.25", "1.25 ± 0.25"]
    assert cells(lines[2]) == ["`timm:x`, batch 1, deployed", *both, "-", "80 % / 60 % (1.25)", "-"]
    assert cells(lines[3]) == ["`timm:x`, batch 1", "-", "-", "70 % / 90 % (1.25)", "-", "-"]


def test_processors_stand_side_by_side(tmp_path: Path) -> None:
    width = {"width, batch 1": {"0.5": {"macs": 0.5, "real": RATIO, "own": {**RATIO, "median": 0.75}}}}
    files = {"deployment": {"models": {"timm:x": width}}, "skipping": {"models": {}}}
    files["resolution"] = {"model": "timm:x", "batches": {}}
    beside = tmp_path / "processors" / "other"
    beside.mkdir(parents=True)
    for folder, name in ((tmp_path, "One"), (beside, "Other")):
        for file, content in files.items():
            machine = {**MACHINE, "processor": name}
            (folder / f"{file}.json").write_text(json.dumps({"machine": machine, **content}))
        width["width, batch 1"].clear()
    lines = RENDERERS["processors"](tmp_path).splitlines()
    assert cells(lines[0]) == ["deployed", "MACs", "One", "Other"]
    assert cells(lines[2]) == ["`timm:x` at width 0.5, batch 1", "50.0 %", "1.25 ± 0.25, 0.75 ± 0.25", "-"]


def test_other_tables(tmp_path: Path) -> None:
    mixed = {"full, batch 8": TIME, "together, batch 8": TIME}
    lines = rendered("routing", {"models": {"timm:x": mixed}, "method": "m"}, tmp_path)
    assert cells(lines[2]) == ["`timm:x`, batch 8", "1.25 ± 0.25", "1.25 ± 0.25", "-"]
    batch = {
        "macs_of_decided": 0.5,
        "decided_over_source": TIME,
        "decided_over_native": TIME,
        "mixed_over_ideal": TIME,
        "predicted_over_native": TIME,
    }
    content = {"batches": {"8": batch}, "sizes": [112, 224], "model": "timm:x"}
    assert cells(rendered("resolution", content, tmp_path)[2]) == [
        "batch 8",
        "50.0 %",
        *["1.25 ± 0.25"] * 4,
    ]
    row = {"network": "resnet", "method": "dsnet", "device": "meta", "nodes": 10000, "parameters": 5_000_000}
    row |= {"seconds": 30.0, "exports": 20.0, "memory": 2**21}
    assert cells(rendered("scaling", {"rows": [row]}, tmp_path)[2]) == [
        "resnet, `dsnet` (meta)",
        "10,000",
        "5.0 M",
        "30.0",
        "20.0",
        "1.50",
        "2 MiB",
    ]


def test_deployed_models(tmp_path: Path) -> None:
    row = dict.fromkeys(("specialized", "forced", "packed", "gated", "real"), RATIO) | {"macs": 0.25}
    rows = {
        "full, batch 8": RATIO,
        "width, batch 1": {"0.5": row},
        "mixed, batch 32": {"shared": RATIO, "packed": RATIO},
        "memory, batch 8": {"full": 0.95, "mixed": 0.8, "source megabytes": 1.0},
    }
    lines = rendered("deployment", {"models": {"timm:x": rows}}, tmp_path)
    assert cells(lines[2]) == ["`timm:x`, batch 8", "1.25 ± 0.25"]
    assert cells(lines[6])[:3] == ["`timm:x`, 0.5, batch 1", "25.0 %", "1.25 ± 0.25"]
    assert cells(lines[10]) == ["`timm:x`, batch 32", "1.25 ± 0.25", "1.25 ± 0.25"]
    assert cells(lines[14]) == ["`timm:x`, batch 8", "0.95", "0.80"]


def test_compiled_and_exported_models_stand_with_the_deployed_ones(tmp_path: Path) -> None:
    alone = len(rendered("deployment", {"models": {}}, tmp_path))
    exported = {"share": 0.3, "time": TIME, "difference": 2e-6, "largest output": 0.68}
    for name, models in (
        ("deployment_compiled", {"timm:x": {"full, batch 1": RATIO}}),
        ("export", {"timm:x dsnet": exported}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps({"machine": MACHINE, "models": models}))
    lines = rendered("deployment", {"models": {}}, tmp_path)[alone:]
    assert cells(lines[3]) == ["`timm:x`, batch 1", "1.25 ± 0.25"]
    assert cells(lines[9]) == ["`timm:x dsnet`", "30.0 %", "1.25 ± 0.25", "2e-06", "0.68"]


def test_accuracies_are_means_over_seeds(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.9, 0.8)):
        run = {
            "network": "vit",
            "method": "dsnet",
            "target": 0.5,
            "seed": seed,
            "dynamic": {"accuracy": accuracy, "share": 0.5, "stored_parameter_share": 2.5},
            "speed": {f"dynamic, batch {batch}": {"cpu": {"median": 1.5}} for batch in (1, 256)},
            "static": [{"accuracy": 0.7}, {"accuracy": 0.75}],
            "fixed": [{"share": 0.4, "accuracy": 0.6}, {"share": 0.6, "accuracy": 0.7}],
            "random": {"accuracy": 0.65},
            "source": {"accuracy": 0.95},
        }
        lines = rendered("fashion", run, tmp_path, f"fashion/vit-s{seed}")
    assert cells(lines[2])[:5] == ["vit, `dsnet`, 50 %", "2", "50.0 ± 0.0", "85.0 ± 7.1", "65.0 ± 0.0"]
    assert cells(lines[2])[-3:] == ["2.50", "1.50", "1.50"]
    assert "resnet `dsnet` 50 % (0)" in lines[-3]
    assert "vit `dsnet` 50 % (2)" in lines[-3]
    run["speed"] = {
        f"{kind}, batch {batch}": {"cpu": {"median": value}}
        for kind, value in (("dynamic, deployed", 0.5), ("static", 0.25))
        for batch in (1, 32)
    }
    lines = rendered("text", run, tmp_path, "text/long/minilm-s0")
    assert cells(lines[2])[-4:] == ["0.50", "0.50", "0.25", "0.25"]
    one = {
        "fixed": [
            {"label": "32", "share": 0.3, "accuracy": 0.6},
            {"label": "64", "share": 1.0, "accuracy": 0.8},
        ]
    }
    one |= {"source": {"accuracy": 0.8}}
    one["learned"] = [{"target": 0.5, "share": 0.65, "accuracy": 0.75, "random": {"accuracy": 0.7}}]
    lines = rendered("multiscale", one, tmp_path, "multiscale/s0")
    assert cells(lines[4]) == ["learned, budget 50 %", "65.0 %", "75.0", "70.0", "70.0"]


def test_exits_are_shown_between_leaving_first_and_never_leaving(tmp_path: Path) -> None:
    (tmp_path / "fashion").mkdir()
    curve = [{"accuracy": 0.5 + step / 10, "share": 0.2 + step / 4} for step in range(5)]
    static = [{"accuracy": 0.66, "share": 0.5}, {"accuracy": 0.77, "share": 1.0}]
    for seed, target in ((0, 0.7), (0, 0.5), (0, 0.3), (1, 0.5)):
        found = {"network": "net", "method": "exits", "target": target, "seed": seed, "machine": MACHINE}
        less = {"accuracy": 0.1, "share": 0.3}
        found |= {"static": [static[0] if target == 0.5 else less, static[1]]}
        found |= {"curve": curve, "fixed": [curve[0], curve[-1]]}
        (tmp_path / "fashion" / f"{seed}-{target}.json").write_text(json.dumps(found))
    row = RENDERERS["exits"](tmp_path).splitlines()[2]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:2] == ["net, `exits`", "2"]
    expected = ["50.0", "60.0", "70.0", "80.0", "90.0", "66.0", "77.0"]
    shares = [20, 45, 70, 95, 120, 50, 100]
    assert cells[2:] == [f"{a} ± 0.0 at {s} %" for a, s in zip(expected, shares, strict=True)]
