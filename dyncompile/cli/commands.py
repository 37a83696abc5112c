"""Commands that make models: read arguments, call the library, show what it returns."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dyncompile.cli.app import METHODS, AsJson, Method, Model, app, examples
from dyncompile.cli.convert import convert_checkpoint
from dyncompile.cli.models import Loaded, load_model, make_dynamic
from dyncompile.cli.output import busy, create_folder, errors_as_panels, out, progress, say, show
from dyncompile.cli.tables import conversion_data, conversion_summary, demo_report, verify_table
from dyncompile.demo import DemoConfig, run_demo
from dyncompile.report import explain as explanation_of
from dyncompile.report import to_text
from dyncompile.report.console import to_console
from dyncompile.spec import parse_specs
from dyncompile.verify import verify as check_contract

_DEMO = DemoConfig()


def _dynamic(model: str, method: list[str]) -> Loaded:
    passes = parse_specs(method, {})
    with busy(f"loading {model}"):
        source = load_model(model)
    with busy(f"capturing {model}, planning, rewriting"):
        return make_dynamic(source, passes)


@app.command(
    epilog=examples(
        "dyncompile explain timm:resnet18",
        'dyncompile explain torchvision:vit_b_16 --method "dsnet(per=stage)" --verbose',
        "dyncompile explain my_package.nets:small?width=32 --json",
    )
)
def explain(
    model: Model,
    method: Method = METHODS,
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
    epilog=examples(
        "dyncompile verify timm:resnet18",
        'dyncompile verify timm:mixer_s32_224 --method "dsnet(per=dim)" --json',
    )
)
def verify(model: Model, method: Method = METHODS, as_json: AsJson = False) -> None:
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
    epilog=examples(
        "dyncompile convert resnet50.safetensors --arch timm:resnet50 -o resnet50-dynamic",
        'dyncompile convert a.pth --arch "timm:resnet18?num_classes=10" --method "dsnet(per=stage)" -o out',
        "dyncompile convert folder-of-shards --arch hf:BertModel -o bert-dynamic",
    )
)
def convert(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            show_default=False,
            help="A state_dict: .pt, .pth, .bin, .ckpt or .safetensors, or a folder of Hugging Face's.",
        ),
    ],
    arch: Annotated[str, typer.Option("--arch", metavar="MODEL", help="The model that it belongs to.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="A new directory.")],
    method: Method = METHODS,
    entry: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which of several state_dicts in the file, e.g. ema.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Turn a checkpoint of a static model into one of a dynamic model.

    Pickles are read as data: a file that would have to run code is refused. The contract is checked before
    anything is written; OUT may exist if it is empty or holds an earlier result.
    """
    with errors_as_panels(as_json=as_json):
        done = convert_checkpoint(checkpoint, arch, method, output, busy, entry=entry)
        if as_json:
            say(json.dumps(conversion_data(done), indent=2))
        else:
            out.print(conversion_summary(done))


@app.command(
    epilog=examples("dyncompile demo", "dyncompile demo --epochs 5 --slicing-epochs 3 --out results")
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
