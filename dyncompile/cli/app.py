"""The application, the options that several commands have, and the configuration file."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from typer.core import TyperGroup

import dyncompile
from dyncompile.cli.output import errors_as_panels, say
from dyncompile.errors import SpecError


def examples(*lines: str) -> str:
    """Examples under a command's help; the blank lines keep each on its own line."""
    return "\n\n".join(("Examples:", *(f"  {line}" for line in lines)))


_ORDER = (
    *("demo", "explain", "convert", "train", "eval", "report", "export"),
    *("specialize", "bench", "profile", "inspect", "verify"),
)


class _InOrder(TyperGroup):
    """Lists commands as one comes to use them; those that the order does not know come last."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names for ``--help``."""
        known = {name: place for place, name in enumerate(_ORDER)}
        return sorted(super().list_commands(ctx), key=lambda name: known.get(name, len(known)))


app = typer.Typer(
    name="dyncompile",
    cls=_InOrder,
    help="Turn a static PyTorch network into a dynamic one that spends less work on easy inputs.",
    epilog=examples("dyncompile demo", "dyncompile explain timm:resnet18", "dyncompile COMMAND --help"),
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="timm:NAME, torchvision:NAME, hf:CLASS_OR_FOLDER or package.module:function, then ?key=value",
        show_default=False,
    ),
]
Method = Annotated[
    list[str],
    typer.Option(
        "--method",
        "-m",
        metavar="SPEC",
        help='A method such as "dsnet(per=stage)"; repeat it to compose methods.',
    ),
]
METHODS = ["dsnet"]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Saved = Annotated[
    Path,
    typer.Argument(metavar="OUT", help="A dynamic model that convert or train wrote.", show_default=False),
]
SourceModel = Annotated[
    str | None,
    typer.Option(
        "--source",
        metavar="MODEL",
        help="Build the source network by this name; without it the stored graph is enough.",
    ),
]
Data = Annotated[
    str,
    typer.Option(
        metavar="DATA",
        help="A folder of images (CLASS/*.png, or train/ and val/ of these), or package.module:function that "
        "returns a dataset or (training, validation).",
        show_default=False,
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        metavar="NUMBERS",
        help="Images of a folder are (pixel in [0, 1] - mean) / deviation: one number, or one per channel "
        "as in 0.485,0.456,0.406. By default what the source was trained with, if its library says so, "
        "else 0.5.",
        show_default=False,
    ),
]
Deviation = Annotated[str | None, typer.Option(metavar="NUMBERS", help="See --mean.", show_default=False)]
Batch = Annotated[int, typer.Option("--batch-size", min=1, help="Samples per forward pass.")]
Settings = Annotated[
    list[str],
    typer.Option(
        "--route", "-r", metavar="CHOICE=LABEL", help="A column by its label or its number; repeat it."
    ),
]
Smallest = Annotated[
    bool, typer.Option("--smallest", help="Choices not named are at their cheapest, not full.")
]


def _version(asked: bool) -> None:
    if asked:
        say(f"dyncompile {dyncompile.__version__}")
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="Defaults for the options: a table per command, such as batch-size = 32 in the table train.",
        ),
    ] = None,
) -> None:
    """Read the options that belong to no command."""
    if config is not None:
        with errors_as_panels():
            context.default_map = read_config(config, getattr(context.command, "commands", {}))


def read_config(path: Path, commands: dict[str, click.Command]) -> dict[str, Any]:
    """Defaults by command and parameter. Raises SpecError: no TOML, or a name that no command knows."""
    try:
        tables = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SpecError(f"the configuration cannot be read: {error}", where=str(path)) from None
    return {name: _table(path, name, values, commands) for name, values in tables.items()}


def _table(path: Path, name: str, values: Any, commands: dict[str, click.Command]) -> dict[str, Any]:
    if name not in commands or not isinstance(values, dict):
        raise SpecError(f"[{name}] is no command{_near(name, commands)}", where=str(path))
    known = {spelled: p for p in commands[name].params for spelled in _spellings(p)}
    table: dict[str, Any] = {}
    for key, value in values.items():  # pyright: ignore[reportUnknownVariableType]
        if key not in known:
            raise SpecError(f"[{name}] has no option {key!r}{_near(str(key), known)}", where=str(path))  # pyright: ignore
        table[known[str(key)].name or ""] = value  # pyright: ignore[reportUnknownArgumentType]
    return table


def _spellings(parameter: click.Parameter) -> list[str]:
    """Flags without dashes; an argument by its own name."""
    flags = [flag.lstrip("-") for flag in parameter.opts if len(flag.lstrip("-")) > 1]
    return [*flags, parameter.name or ""]


def _near(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""
