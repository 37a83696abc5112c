"""The commands: read arguments, call the library, show what it returns.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 a model breaks its contract,
2 something that the user gave cannot be used. Anything else is a bug and shows its traceback.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

import dyncompile
from dyncompile.cli.convert import convert_checkpoint
from dyncompile.cli.models import Loaded, load_model, make_dynamic
from dyncompile.cli.output import busy, create_folder, errors_as_panels, out, progress, say, show
from dyncompile.cli.tables import conversion_summary, demo_report, verify_table
from dyncompile.demo import DemoConfig, run_demo
from dyncompile.report import explain as explanation_of
from dyncompile.report import to_text
from dyncompile.report.console import to_console
from dyncompile.spec import parse_specs
from dyncompile.verify import verify as check_contract


def _examples(*lines: str) -> str:
    """Examples under a command's help; the blank lines keep each on its own line."""
    return "\n\n".join(("Examples:", *(f"  {line}" for line in lines)))


app = typer.Typer(
    name="dyncompile",
    help="Turn a static PyTorch network into a dynamic one that spends less work on easy inputs.",
    epilog=_examples("dyncompile demo", "dyncompile explain timm:resnet18", "dyncompile COMMAND --help"),
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    add_completion=False,
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
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
_METHODS = ["dsnet"]
_DEMO = DemoConfig()


def _version(asked: bool) -> None:
    if asked:
        say(f"dyncompile {dyncompile.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Read the options that belong to no command."""


def _dynamic(model: str, method: list[str]) -> Loaded:
    passes = parse_specs(method, {})
    with busy(f"loading {model}"):
        source = load_model(model)
    with busy(f"capturing {model}, planning, rewriting"):
        return make_dynamic(source, passes)


@app.command(
    epilog=_examples(
        "dyncompile explain timm:resnet18",
        'dyncompile explain torchvision:vit_b_16 --method "dsnet(per=stage)" --verbose',
        "dyncompile explain my_package.nets:small?width=32 --json",
    )
)
def explain(
    model: Model,
    method: Method = _METHODS,
    as_json: AsJson = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="List every name, not patterns.")] = False,
) -> None:
    """Show what a method does to a model: sites, rejections with reasons, shares of parameters and MACs."""
    with errors_as_panels():
        loaded = _dynamic(model, method)
        found = explanation_of(loaded.dyn)
        if as_json:
            say(json.dumps(asdict(found), indent=2))
        else:
            show(to_console(found, verbose=verbose), to_text(found, verbose=verbose))


@app.command(
    epilog=_examples(
        "dyncompile verify timm:resnet18",
        'dyncompile verify timm:mixer_s32_224 --method "dsnet(per=dim)" --json',
    )
)
def verify(model: Model, method: Method = _METHODS, as_json: AsJson = False) -> None:
    """Check the whole contract on a model: equal at full capacity, cost, specialization, replay and more."""
    with errors_as_panels(as_json=as_json):
        loaded = _dynamic(model, method)
        with busy("checking the contract"):
            report = check_contract(loaded.dyn, loaded.source.model, loaded.example)
        if as_json:
            say(json.dumps({"passed": report.passed, **asdict(report)}, indent=2))
        else:
            show(verify_table(report), str(report))


@app.command(
    epilog=_examples(
        "dyncompile convert resnet50.safetensors --arch timm:resnet50 -o resnet50-dynamic",
        'dyncompile convert a.pth --arch "timm:resnet18?num_classes=10" --method "dsnet(per=stage)" -o out',
    )
)
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A plain state_dict: .pt, .pth or .safetensors.")],
    arch: Annotated[str, typer.Option("--arch", metavar="MODEL", help="The model that it belongs to.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="A new directory.")],
    method: Method = _METHODS,
) -> None:
    """Turn a checkpoint of a static model into one of a dynamic model.

    Pickles are read as data: a file that would have to run code is refused. The contract is checked before
    anything is written; OUT may exist if it is empty or holds an earlier result.
    """
    with errors_as_panels():
        done = convert_checkpoint(checkpoint, arch, method, output, busy)
        out.print(conversion_summary(done))


@app.command(
    epilog=_examples("dyncompile demo", "dyncompile demo --epochs 5 --slicing-epochs 3 --out results")
)
def demo(
    epochs: Annotated[
        int, typer.Option(help="Passes over the digits for the source network.")
    ] = _DEMO.epochs,
    slicing_epochs: Annotated[
        int, typer.Option(help="Passes for all widths together.")
    ] = _DEMO.slicing_epochs,
    gate_epochs: Annotated[
        int, typer.Option(help="Passes for the net that picks widths.")
    ] = _DEMO.gate_epochs,
    pairs: Annotated[int, typer.Option(help="Pairs of latency measurements per width.")] = _DEMO.pairs,
    seed: Annotated[int, typer.Option(help="Seeds the split, the weights and the order.")] = _DEMO.seed,
    output: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Write demo.json there; else nothing is written."),
    ] = None,
) -> None:
    """Train a small ResNet on digits, make its width dynamic per image, verify it, measure it (a minute)."""
    with errors_as_panels():
        config = DemoConfig(
            epochs=epochs,
            slicing_epochs=slicing_epochs,
            gate_epochs=gate_epochs,
            pairs=pairs,
            seed=seed,
        )
        if output is not None:
            create_folder(output)
        with progress() as watch:
            result = run_demo(config, watch)
        out.print(demo_report(result))
        if output is not None:
            say(f"written: {result.write(output)}")
