"""Commands that train dynamic models and measure what they learned."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from dyncompile.checkpoint import save
from dyncompile.cli.app import AsJson, Batch, Data, Deviation, Mean, Saved, SourceModel, app, examples
from dyncompile.cli.data import load_data, pixels
from dyncompile.cli.models import open_model
from dyncompile.cli.output import busy, create_folder, err, errors_as_panels, say
from dyncompile.cli.settings import read_settings
from dyncompile.errors import InputError, SpecError
from dyncompile.policies import Full, Learned, Policy, Smallest
from dyncompile.report.evaluation import Evaluation, evaluate_policy
from dyncompile.report.sections import percent
from dyncompile.runtime.model import DynamicModel
from dyncompile.stored.description import read_description
from dyncompile.train import History, Recipe, fit, recipes
from dyncompile.train.progress import Update, describe

TRAINING = "training"
"""Below a trained model's directory: checkpoints to resume from, and the history."""
_POLICIES: dict[str, Policy] = {"learned": Learned(), "full": Full(), "smallest": Smallest()}


@app.command(
    epilog=examples(
        "dyncompile train resnet50-dynamic --data images/ -o resnet50-trained",
        "dyncompile train OUT --data my_package.data:digits --recipe dsnet --set target=0.4 -o TRAINED",
        "dyncompile --config run.toml train OUT -o TRAINED",
    )
)
def train(
    model: Saved,
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="TRAINED", help="Where the result goes.")],
    recipe: Annotated[
        str | None, typer.Option(metavar="NAME", help="A recipe; by default that of the model's method.")
    ] = None,
    settings: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="A setting of the recipe; repeat it.")
    ] = [],  # noqa: B006
    batch_size: Batch = 64,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read the data ahead.")] = 0,
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = 0,
    resume: Annotated[bool, typer.Option(help="Go on from the newest checkpoint in TRAINED.")] = True,
    source: SourceModel = None,
    mean: Mean = None,
    deviation: Deviation = None,
    as_json: AsJson = False,
) -> None:
    """Train a dynamic model by its method's recipe; killed and started again it goes on where it was."""
    with errors_as_panels():
        with busy(f"loading {model}"):
            dyn = open_model(model, source).train()
            description = read_description(model)
        plan = make_recipe(recipe or default_recipe(dyn), settings)
        sets = load_data(data, dyn, pixels(mean, deviation, description["source"]))
        create_folder(output)
        history = fit(
            dyn,
            plan,
            sets.train,
            sets.validation,
            batch_size=batch_size,
            workers=workers,
            seed=seed,
            directory=output / TRAINING,
            resume=resume,
            progress=True if err.is_terminal else _epochs(),
        )
        save(dyn.cpu().eval(), output, source=description["source"])
        say(json.dumps(_summary(history, output), indent=2) if as_json else _told(history, output, data))


@app.command(
    name="eval",
    epilog=examples(
        "dyncompile eval TRAINED --data images/",
        "dyncompile eval TRAINED --data my_package.data:digits --policy full --json",
    ),
)
def evaluate(
    model: Saved,
    data: Data,
    policy: Annotated[str, typer.Option(help="Who decides: learned, full or smallest.")] = "learned",
    part: Annotated[str, typer.Option(help="Which part of the data: validation or train.")] = "validation",
    batch_size: Batch = 64,
    source: SourceModel = None,
    mean: Mean = None,
    deviation: Deviation = None,
    as_json: AsJson = False,
) -> None:
    """Measure accuracy, MACs and the use of every choice on labeled data."""
    with errors_as_panels():
        if policy not in _POLICIES or part not in ("validation", "train"):
            raise SpecError(f"a policy is one of {', '.join(_POLICIES)}, a part validation or train")
        dyn = open_model(model, source)
        sets = load_data(data, dyn, pixels(mean, deviation, read_description(model)["source"]))
        chosen = sets.train if part == "train" else sets.measured
        if chosen is None:
            raise InputError("there is no data to evaluate on")
        with busy("evaluating"):
            found = evaluate_policy(dyn, chosen, _POLICIES[policy], batch_size=batch_size)
        say(json.dumps(asdict(found), indent=2) if as_json else _measured(found))


def _epochs() -> Callable[[Update], object]:
    """A line per epoch, for logs: where there is no terminal nobody sees a bar."""
    last: list[tuple[str, int]] = []

    def told(update: Update) -> None:
        if update.step == update.steps or (last and last[-1] != (update.phase, update.epoch)):
            err.file.write(f"{update.phase} {update.step}/{update.steps}: {describe(update)}\n")
        last[:] = [(update.phase, update.epoch)]

    return told


def default_recipe(dyn: DynamicModel) -> str:
    """The recipe with the name of the model's method. Raises SpecError where there is none, or several."""
    methods = list(dict.fromkeys(spec.partition("(")[0] for spec in dyn.history))
    named = [method for method in methods if method in dir(recipes)]
    if len(named) != 1:
        raise SpecError(
            f"the model was made by {', '.join(methods)}, which names no single recipe",
            fix=f"choose: --recipe {' | '.join(dir(recipes))}",
        )
    return named[0]


def make_recipe(name: str, settings: Sequence[str]) -> Recipe:
    """A recipe from ``key=value`` words. Raises SpecError."""
    known = dir(recipes)
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        fix = f"did you mean {near[0]!r}?" if near else f"recipes are: {', '.join(known)}"
        raise SpecError(f"there is no recipe {name!r}", fix=fix)
    function = getattr(recipes, name)
    return function(**read_settings(function, settings, f"recipe {name!r}"))


def _summary(history: History, output: Path) -> dict[str, Any]:
    last = dict(history.epochs[-1].validation) if history.epochs else dict[str, float]()
    return {
        "recipe": history.recipe,
        "steps": len(history.steps),
        "validation": last,
        "calibration": history.calibration,
        "output": str(output),
    }


def _told(history: History, output: Path, data: str) -> str:
    last = dict(history.epochs[-1].validation) if history.epochs else dict[str, float]()
    lines = [f"{history.recipe}: {len(history.steps)} steps"]
    if last:
        macs = last.pop("macs", None)
        numbers = [*(f"{name} {value:.4g}" for name, value in last.items())]
        numbers += [f"{percent(macs)} of the MACs"] if macs is not None else []
        lines.append(f"validation after the last epoch: {', '.join(numbers)}")
    else:
        lines.append("no validation data: nothing was measured")
    if history.calibration is not None:
        lines.append(_calibrated(history.calibration))
    return "\n".join(
        (*lines, f"written: {output}", f"measure it with dyncompile eval {output} --data {data}")
    )


def _calibrated(found: Mapping[str, Any]) -> str:
    """What the shift to the target did to the cost; that it went too far is a warning of `fit`."""
    before, reached, target, unit = (found.get(key) for key in ("before", "reached", "target", "unit"))
    if before is None or reached is None or target is None:
        return f"calibrated: {', '.join(f'{key} {value}' for key, value in found.items())}"
    shares = (percent(share) for share in (before, reached, target))
    return "calibrated: {} of the {unit} before, {} now, target {}".format(*shares, unit=unit)


def _measured(found: Evaluation) -> str:
    lines = [
        f"samples   {found.samples:,}",
        f"accuracy  {percent(found.accuracy)}",
        f"MACs      {percent(found.macs)} of the source's, decision nets included",
        f"weights   {found.parameters:.1%} of the source's parameters are read for a sample",
        *(
            f"{name}: " + ", ".join(f"{label} in {percent(share)}" for label, share in use.items())
            for name, use in found.use.items()
        ),
    ]
    return "\n".join(lines)
