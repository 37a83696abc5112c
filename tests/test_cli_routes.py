"""Words of the command line that name a column."""

from __future__ import annotations

import pytest

from dyncompile.cli.routes import parse_route
from dyncompile.errors import RouteError
from tests.train_support import conv_net

NET = conv_net("dsnet(ratios=(0.25, 0.5, 1.0), divisor=1, minimum=1)")


@pytest.mark.parametrize(
    ("word", "column"),
    [
        ("0.25", 0),
        ("0.50", 1),
        (".5", 1),
        ("1.0", 2),
        ("0", 0),
        ("1", 2),
        ("2", 2),
        ("full", 2),
        ("smallest", 0),
    ],
)
def test_labels_come_before_positions(word: str, column: int) -> None:
    (row,) = parse_route(NET, [f"width={word}"], smallest=False)["width"].tolist()
    assert row.index(1.0) == column


@pytest.mark.parametrize("word", ["2.0", "3", "-1", "1.5", "nan", "wide", ""])
def test_what_names_no_column_is_refused(word: str) -> None:
    with pytest.raises(RouteError, match=r"0\.25, 0\.5, 1"):
        parse_route(NET, [f"width={word}"], smallest=False)
