"""The training loop: what moves, at which rate, on which data, and what stops it."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.tracking import GeneralTracker
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import dyncompile as dc
from dyncompile.policies import Forced, Full, Learned, Smallest
from dyncompile.train import Clock, Moment, Optimization, Phase, Schedule, Turn, Update, fit
from dyncompile.train.average import Average
from dyncompile.train.batches import as_batch
from dyncompile.train.checkpoints import Checkpoints
from dyncompile.train.data import Layout, Samples
from dyncompile.train.diagnostics import CollapseWarning
from dyncompile.train.optim import parameter_groups, rate_factor, trainable
from dyncompile.train.step import term_keys
from tests.train_support import (
    GATED,
    UNGATED,
    Interrupted,
    conv_net,
    distill,
    gate_phase,
    images,
    perceptron,
    plain,
    recipe,
    run,
    same_state,
    sandwich,
    state_of,
    stop_after,
    task,
    two_phases,
)


def test_compiled_model_is_trained_as_what_it_wraps() -> None:
    plainly, wrapped = conv_net(GATED), conv_net(GATED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing the compiler warns of what it uses itself
        compiled: Any = torch.compile(wrapped)
    how = recipe(gate_phase(epochs=1))
    run(compiled, how)
    run(plainly, how)
    assert same_state(state_of(wrapped), state_of(plainly))


# -- rates and groups -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule("constant"), {0: 1.0, 99: 1.0}),
        (Schedule("cosine"), {0: 1.0, 50: 0.5, 25: 0.5 + math.sqrt(0.125), 100: 0.0}),
        (Schedule("cosine", floor=0.2), {0: 1.0, 50: 0.6, 100: 0.2}),
        (Schedule("cosine", warmup=0.2), {0: 0.05, 9: 0.5, 19: 1.0, 20: 1.0, 60: 0.5, 100: 0.0}),
        (Schedule("step", drops=(0.5, 0.75)), {49: 1.0, 50: 0.1, 74: 0.1, 75: 0.01}),
        (Schedule("step", warmup=0.1, drops=(0.5,), factor=0.5), {0: 0.1, 9: 1.0, 10: 1.0, 50: 0.5}),
    ],
)
def test_schedule(schedule: Schedule, expected: dict[int, float]) -> None:
    found = {step: rate_factor(schedule, step, 100) for step in expected}
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "made",
    [
        lambda: Optimization(rate=math.nan),
        lambda: Optimization("sgd", momentum=1.0),
        lambda: Schedule(floor=-0.1),
        lambda: Schedule("step", factor=0.0),
        lambda: Schedule("step", drops=(0.5, 30)),
        lambda: plain(clip=-1.0),
        lambda: plain(clip=math.nan),
        lambda: plain(average=1.5),
        lambda: dc.recipes.dsnet(target=0.5, average=-0.1),
    ],
)
def test_senseless_numbers_are_refused(made: Callable[[], object]) -> None:
    with pytest.raises(dc.SpecError, match=" got "):
        made()


def test_rates_are_on_record() -> None:
    how = recipe(plain(epochs=1, base=Optimization(rate=0.1), schedule=Schedule("step", drops=(0.5,))))
    assert [step.rates["base"] for step in run(conv_net(), how).steps] == pytest.approx(
        [0.1] * 3 + [0.01] * 2
    )


def test_parameter_groups() -> None:
    """Matrices decay, vectors and decision nets do not; decision nets have their own rate."""
    dyn = conv_net(GATED)
    phase = plain(
        base=Optimization("sgd", 0.1, decay=0.01, momentum=0.8), gates=Optimization("adamw", 0.5, 0.3)
    )
    named = trainable(dyn, phase)
    groups = parameter_groups(named, phase)
    weights, vectors, gates = (
        {n for n, p in named.items() if any(p is q for q in g["params"])} for g in groups
    )
    assert weights == {"0.weight", "4.weight", "8.weight"}
    assert vectors == {"0.bias", "1.weight", "1.bias", "4.bias", "8.bias"}
    assert gates == {name for name in named if name.startswith("dyn.gates.")} != set()
    assert [(g["kind"], g["peak"], g["weight_decay"]) for g in groups] == [
        ("sgd", 0.1, 0.01),
        ("sgd", 0.1, 0.0),
        ("adamw", 0.5, 0.0),
    ]
    assert (groups[0]["momentum"], groups[0]["nesterov"]) == (0.8, True)


@pytest.mark.parametrize("trains", ["all", "base", "gates"])
def test_only_what_trains_moves(trains: Any) -> None:
    dyn = conv_net(GATED)
    before = dict(state_of(dyn))
    run(dyn, recipe(gate_phase(trains=trains)))
    after = state_of(dyn)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    gates = {name for name in dict(dyn.named_parameters()) if name.startswith("dyn.gates.")}
    assert (not moved & gates) == (trains == "base")
    assert (not moved - gates) == (trains == "gates")


def test_one_sgd_step_by_hand() -> None:
    """Nesterov's first step is (1 + momentum) times the gradient; clipping comes before it."""
    dyn, twin = perceptron(), perceptron()
    data = images(8)
    how = recipe(plain(epochs=1, base=Optimization("sgd", 0.1), schedule=Schedule("constant"), clip=0.01))
    fit(dyn, how, data, batch_size=8, progress=False)
    torch.nn.functional.cross_entropy(twin.run(data.tensors[0], policy=Full())[0], data.tensors[1]).backward()
    gradients = {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
    assert norm > 0.01
    for name, parameter in dyn.named_parameters():
        expected = twin.get_parameter(name) - 0.1 * 1.9 * 0.01 / norm * gradients[name]
        torch.testing.assert_close(parameter, expected, rtol=1e-4, atol=1e-7)


def test_average() -> None:
    dyn = conv_net()
    average = Average(dyn, 0.75)
    before = state_of(dyn)
    with torch.no_grad():
        for tensor in (*dyn.parameters(), *dyn.buffers()):
            tensor.add_(1)
    average.update(dyn)
    for name, tensor in average.model.state_dict().items():
        step = 0.25 if tensor.is_floating_point() else 1
        torch.testing.assert_close(tensor, before[name] + step)
    assert not average.model.training
    assert not any(p.requires_grad for p in average.model.parameters())


def test_adopting_the_average() -> None:
    """A decay of 1 never moves the average, so that adopting it undoes the phase."""
    dyn = conv_net()
    before = state_of(dyn)
    run(dyn, recipe(plain(average=1.0, adopt_average=True)))
    after = state_of(dyn)
    counters = {name for name, tensor in before.items() if not tensor.is_floating_point()}
    assert all(torch.equal(before[name], after[name]) for name in set(before) - counters)


def test_frozen_norms() -> None:
    """Statistics stay, dropout is off: two runs under different seeds of the noise are one."""
    dyn = conv_net()
    before = state_of(dyn)
    run(dyn, recipe(plain(frozen_norms=True)))
    after = state_of(dyn)
    kept = {name for name in before if "running" in name or "tracked" in name}
    assert kept
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert not torch.equal(before["0.weight"], after["0.weight"])


# -- steps ------------------------------------------------------------------------------------------


def test_gradients_accumulate() -> None:
    """Two passes of 4 are one of 8 where nothing looks at the whole batch."""
    one, two = perceptron(), perceptron()
    losses = run(one, recipe(plain()), batch_size=8).losses
    assert run(two, recipe(plain()), batch_size=4, accumulate=2).losses == pytest.approx(losses, rel=1e-5)
    for name, parameter in one.named_parameters():
        torch.testing.assert_close(two.get_parameter(name), parameter, rtol=1e-5, atol=1e-7)


def test_teacher_runs_once_per_policy_in_evaluation_mode() -> None:
    seen: list[Any] = []

    def look(moment: Moment) -> Tensor:
        training = moment.dyn.training
        full, again = moment.teacher(Full()), moment.teacher(Full())
        forced = Forced(moment.dyn.route(0))
        small, same = moment.teacher(forced), moment.teacher(forced)
        assert full is again
        assert small is same
        assert moment.teacher(Smallest()) is not full
        assert not full.output.requires_grad
        assert moment.dyn.training == training
        seen.append(full.output)
        return task(moment)

    dyn = conv_net()
    expected = conv_net().eval()(images().tensors[0])
    run(dyn, recipe(plain(look, epochs=1, average=1.0)), batch_size=40)
    assert sorted(seen[0].sum(1).tolist()) == pytest.approx(sorted(expected.sum(1).tolist()), rel=1e-4)


def test_an_earlier_turn_teaches_where_there_is_no_average() -> None:
    """In-place distillation: what the first turn has just given, by this step's weights, without a run."""
    given: list[Tensor] = []

    def first(moment: Moment) -> Tensor:
        given.append(moment.record.output)
        return task(moment)

    def second(moment: Moment) -> Tensor:
        taught = moment.teacher(Full()).output
        assert torch.equal(taught, given[-1])
        assert not taught.requires_grad
        return task(moment)

    turns = (Turn(lambda _: Full(), {"a": first}), Turn(lambda _: Smallest(), {"b": second}))
    run(conv_net(), recipe(Phase("both", turns, epochs=1)))
    assert len(given) > 1


def test_views_and_terms_of_turns() -> None:
    """A turn looks at its own view; terms of one name are told apart by their turn."""
    seen: dict[str, float] = {}

    def look(name: str) -> Any:
        def term(moment: Moment) -> Tensor:
            seen[name] = float(moment.batch.args[0].abs().sum())
            return task(moment)

        return term

    def zeros(batch: Any) -> Any:
        return type(batch)((torch.zeros_like(batch.args[0]),), {}, batch.target)

    turns = (
        Turn(lambda clock: Full(), {"task": look("plain")}),
        Turn(lambda clock: Full(), {"task": look("view"), "kd": distill}, view=zeros),
    )
    history = run(conv_net(), recipe(Phase("views", turns, epochs=1)))
    assert seen["plain"] > 0
    assert seen["view"] == 0
    assert (
        set(history.steps[0].terms)
        == {"task[0]", "task[1]", "kd"}
        == {key for keys in term_keys(turns) for key in keys.values()}
    )
    assert history.steps[0].loss == pytest.approx(sum(history.steps[0].terms.values()))


def test_clock() -> None:
    clocks: list[Clock] = []

    def policy(clock: Clock) -> Full:
        clocks.append(clock)
        return Full()

    run(conv_net(), recipe(Phase("a", (Turn(policy, {"task": task}),), epochs=2)))
    run(conv_net(), recipe(Phase("a", (Turn(policy, {"task": task}),), epochs=2)), seed=1)
    assert [clock.step for clock in clocks] == [*range(10), *range(10)]
    assert {clock.steps for clock in clocks} == {10}
    assert len({clock.seed for clock in clocks}) == 20
    assert clocks[5].progress == 0.5


def test_bf16() -> None:
    kinds: set[torch.dtype] = set()

    def look(moment: Moment) -> Tensor:
        kinds.add(moment.record.output.dtype)
        return task(moment)

    dyn = conv_net()
    history = run(dyn, recipe(plain(look, epochs=8)), precision="bf16")
    assert kinds == {torch.bfloat16}
    assert {p.dtype for p in dyn.parameters()} == {torch.float32}
    assert np.mean(history.losses[-5:]) < np.mean(history.losses[:5])


def test_bf16_trains_widths_and_decision_nets() -> None:
    """Sandwich steps with a moving average, then noisy gates; each step's gradients from two batches."""
    dyn = conv_net(GATED)
    before = state_of(dyn)
    how = recipe(sandwich(task, epochs=4), gate_phase())
    history = run(dyn, how, precision="bf16", batch_size=4, accumulate=2)
    assert all(math.isfinite(value) for step in history.steps for value in step.terms.values())
    first = [step.terms["task"] for step in history.steps if step.phase == "supernet"]
    assert len(first) == 20
    assert np.mean(first[-5:]) < np.mean(first[:5])
    after = state_of(dyn)
    assert all(value.dtype == before[name].dtype for name, value in after.items())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("dyn.gates.") for name in moved)


def test_precisions_do_not_get_in_each_others_way() -> None:
    """Accelerate's settings are one per process; ours are aside, the user's stay."""
    from accelerate import Accelerator

    users = Accelerator(cpu=True)
    run(conv_net(), recipe(plain(epochs=1)), precision="bf16")
    run(conv_net(), recipe(plain(epochs=1)), precision="no")
    assert users.mixed_precision == "no"
    with pytest.raises(dc.SpecError, match="int8"):
        run(conv_net(), recipe(), precision="int8")
    if not torch.cuda.is_available():
        with pytest.raises(dc.InputError, match="fp16 needs a GPU"):
            run(conv_net(), recipe(), precision="fp16")


@pytest.mark.gpu
def test_fp16_scales_its_losses() -> None:
    dyn = conv_net()
    history = run(dyn, recipe(plain(epochs=8, clip=1.0)), precision="fp16")
    assert np.mean(history.losses[-5:]) < np.mean(history.losses[:5])


# -- what is left as it was -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how", [recipe(gate_phase(trains="base")), recipe(plain(average=0.9, recalibrate=True))]
)
@pytest.mark.parametrize("stopped", [None, 3])
def test_nothing_else_changes(how: Any, stopped: int | None) -> None:
    """Which parameters require gradients, the mode and all random generators; after an error, too."""
    dyn = conv_net(GATED).eval()
    dyn.get_parameter("0.weight").requires_grad_(False)
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    if stopped is None:
        run(dyn, how)
    else:
        with pytest.raises(Interrupted):
            run(dyn, how, progress=stop_after(stopped))
    required = {name for name, p in dyn.named_parameters() if not p.requires_grad}
    assert required == {"0.weight"}
    assert all(p.grad is None for p in dyn.parameters())
    assert not dyn.training
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), str(np.random.get_state()))


def test_runs_repeat_and_seeds_matter() -> None:
    torch.manual_seed(7)
    first = run(conv_net(), recipe(sandwich())).losses
    torch.manual_seed(8)
    assert run(conv_net(), recipe(sandwich())).losses == first
    assert run(conv_net(), recipe(sandwich()), seed=1).losses != first


# -- data -------------------------------------------------------------------------------------------


class Counted(Dataset[Any]):
    """Remembers what was read; augments with torch, NumPy and Python."""

    def __init__(self, count: int) -> None:
        self.read: list[int] = []
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.read.append(index)
        return torch.randn(3, 6, 6) + np.random.rand() + random.random(), index % 4


@pytest.mark.parametrize(
    ("count", "batch", "accumulate", "ranks"), [(40, 8, 1, 1), (37, 8, 2, 1), (23, 3, 2, 3)]
)
def test_every_sample_once(count: int, batch: int, accumulate: int, ranks: int) -> None:
    """Every sample once per epoch over all processes; steps differ by one sample at most; orders by epoch."""
    read: list[list[int]] = []
    sizes: dict[int, int] = {}
    for rank in range(ranks):
        data = Counted(count)
        stream = Samples(data, Layout(batch, accumulate, rank, ranks, training=True))
        for i, step in enumerate(stream.read(3, 0)):
            assert 1 <= len(step) <= accumulate
            assert all(1 <= len(labels) <= batch for _, labels in step)
            sizes[i] = sizes.get(i, 0) + sum(len(labels) for _, labels in step)
        read.append(data.read)
    assert sorted(i for part in read for i in part) == list(range(count))
    assert max(sizes.values()) - min(sizes.values()) <= 1
    assert len(sizes) == -(-count // (batch * accumulate * ranks))


def test_reading_starts_where_it_stopped() -> None:
    """The rest of an epoch is read alone, augmented as before, and by worker processes just so."""
    whole, rest = Counted(40), Counted(40)
    layout = Layout(8, 1, 0, 1, training=True)
    expected = list(Samples(whole, layout).read(3, 0))[3:]
    found = list(Samples(rest, layout).read(3, 3))
    ahead = list(Samples(rest, Layout(8, 1, 0, 1, training=True, workers=1)).read(3, 3))
    assert len(rest.read) == 16
    for one, other in ((expected, found), (expected, ahead)):
        assert all(torch.equal(a[0][0], b[0][0]) for a, b in zip(one, other, strict=True))
    assert not torch.equal(expected[0][0][0], expected[1][0][0])
    assert whole.read != list(range(40))


def test_loaders_and_lists() -> None:
    """The same batches in the same order train the same, whatever holds them."""
    pixels, labels = images().tensors
    batches = [(pixels[i : i + 8], labels[i : i + 8]) for i in range(0, 40, 8)]
    forms = (batches, DataLoader(images(), 8), [{"input": x, "labels": y, "index": 1} for x, y in batches])
    found = [fit(conv_net(), recipe(), form, progress=False).losses for form in forms]
    assert found[0] == found[1] == found[2]


def test_forms_of_batches() -> None:
    program = conv_net().program
    x, y = torch.zeros(2, 3, 6, 6), torch.zeros(2)
    assert as_batch(x, program).args[0] is x
    assert as_batch((x, y), program).target is y
    assert as_batch([x, x, y], program).args == (x, x)
    assert as_batch(((x, x), y), program).args == (x, x)
    assert as_batch(({"input": x}, y), program).kwargs == {"input": x}
    named = as_batch({"input": x, "labels": y, "index": 3}, program)
    assert (dict(named.kwargs), named.target) == ({"input": x}, y)
    with pytest.raises(dc.InputError, match="got int"):
        as_batch(3, program)


class _OwnLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(108, 12), nn.Linear(12, 4)

    def forward(self, pixels: Tensor, labels: Tensor, **more: object) -> dict[str, Tensor]:
        logits = self.head(self.inner(pixels.flatten(1)).relu())
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_a_model_with_its_own_loss() -> None:
    """As in Hugging Face: labels go into the model, which returns its loss; accuracy finds them there."""
    pixels, labels = images().tensors
    call = {"pixels": pixels[:2], "labels": labels[:2]}
    dyn = dc.dynamize(_OwnLoss(), "dsnet(divisor=1, minimum=1, gate=False)", call)
    data = [{"pixels": pixels[i].tolist(), "labels": int(labels[i]), "index": i} for i in range(40)]
    listed = type("Listed", (Dataset,), {"__len__": lambda _: 40, "__getitem__": lambda _, i: data[i]})()
    history = fit(dyn, recipe(plain(epochs=10)), listed, listed, batch_size=20, progress=False)
    assert history.losses[-1] < history.losses[0]
    assert history.epochs[-1].validation["metric"] > 0.5


@pytest.mark.parametrize(
    "data", [[], TensorDataset(torch.zeros(0, 3, 6, 6)), DataLoader(images(), 8, sampler=[])]
)
def test_empty_data(data: Any) -> None:
    with pytest.raises(dc.InputError, match="empty"):
        fit(conv_net(), recipe(), data, progress=False)


def test_data_without_length_and_samples_of_two_shapes() -> None:
    with pytest.raises(dc.InputError, match="no length"):
        fit(conv_net(), recipe(), iter([1]), progress=False)
    ragged = type("R", (Dataset,), {"__len__": lambda _: 4, "__getitem__": lambda _, i: torch.zeros(i)})()
    with pytest.raises(dc.InputError, match="stacked"):
        fit(conv_net(), recipe(), ragged, progress=False)


@pytest.mark.parametrize("bad", [4, -1, 1000])
def test_labels_out_of_range(bad: int) -> None:
    pixels, labels = images().tensors
    labels = labels.clone()
    labels[7] = bad
    with pytest.raises(dc.InputError, match=rf"1 of 40 labels .* {bad} to {bad}, .* 4 classes \(0 to 3\)"):
        fit(conv_net(), recipe(), TensorDataset(pixels, labels), progress=False)


def test_ignored_labels_and_probabilities() -> None:
    pixels, labels = images().tensors
    some = torch.where(labels == 0, -100, labels)
    soft = nn.functional.one_hot(labels, 4).float()
    hard = fit(conv_net(), recipe(), [(pixels, labels)], progress=False).losses
    assert fit(conv_net(), recipe(), [(pixels, soft)], progress=False).losses == pytest.approx(hard, rel=1e-5)
    assert all(map(math.isfinite, fit(conv_net(), recipe(), [(pixels, some)], progress=False).losses))


# -- refusals and failures --------------------------------------------------------------------------


def test_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    """It names phase, step, term and the last checkpoint; all that was written stays as it was."""

    def breaks(moment: Moment) -> Tensor:
        return task(moment) * (float("nan") if moment.clock.step == 8 else 1.0)

    turns = (Turn(lambda clock: Full(), {"fine": task, "broken": breaks}),)
    how = recipe(Phase("first", turns, epochs=2))
    written: dict[str, bytes] = {}

    def watch(update: Update) -> None:
        written.clear()
        written.update(contents(tmp_path))

    with pytest.raises(dc.TrainingError) as caught:
        run(conv_net(), how, tmp_path, checkpoint_every=3, progress=watch)
    text = str(caught.value)
    assert all(part in text for part in ("broken is nan", "'first'", "step 8 of 10", "step-00000006-0-first"))
    assert "fine" not in text
    assert contents(tmp_path) == written
    assert Checkpoints(tmp_path, 1).names()[-1] == "step-00000006-0-first"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(error: type[Exception], how: Any, *texts: str, spec: str = GATED, **settings: Any) -> None:
    """Before anything moves."""
    dyn = conv_net(spec)
    before = state_of(dyn)
    with pytest.raises(error) as caught:
        run(dyn, how, **settings)
    assert all(text in str(caught.value) for text in texts)
    assert same_state(before, state_of(dyn))


def test_recipes_that_do_not_fit() -> None:
    dyn = conv_net(GATED)
    least = float(dyn.macs(dyn.route(0))[0]) + dyn.decision_macs
    refused(dc.SpecError, recipe(method="lcnet"), "'lcnet'", "dsnet")
    refused(dc.SpecError, recipe(target=0.01), f"{least:,.0f}", f"{0.01 * dyn.static_macs:,.0f}")
    refused(dc.SpecError, recipe(gate_phase()), "'gates'", spec=UNGATED)
    refused(dc.InputError, recipe(plain(keep="best")), "'plain'", "validation")
    refused(dc.SpecError, recipe(), "checkpoint_every", checkpoint_every=0)
    refused(dc.InputError, recipe(), "batch_size", batch_size=0)


def test_terms_that_cannot_train() -> None:
    with pytest.raises(dc.SpecError, match="not a scalar"):
        run(conv_net(), recipe(plain(lambda moment: moment.record.output)))
    with pytest.raises(dc.SpecError, match="nothing trainable"):
        run(conv_net(GATED), recipe(gate_phase_at_full()))


def gate_phase_at_full() -> Phase:
    turn = Turn(lambda clock: Full(), {"task": task})
    return Phase("gates", (turn,), epochs=1, trains="gates", frozen_norms=True)


# -- numbers ----------------------------------------------------------------------------------------


def test_validation_numbers() -> None:
    """Accuracy and cost of the learned policy, decision nets included, as run by hand."""
    dyn = undecided()
    history = run(dyn, recipe(gate_phase(gates=Optimization(rate=1e-4))), val_data=images(25, seed=2))
    pixels, labels = images(25, seed=2).tensors
    with torch.no_grad():
        output, route = dyn.eval().run(pixels, policy=Learned())
    found = history.epochs[-1].validation
    right = float((output.argmax(1) == labels).float().mean())
    share = (float(dyn.macs(route).mean()) + dyn.decision_macs) / dyn.static_macs
    assert found["metric"] == pytest.approx(right)
    assert found["macs"] == pytest.approx(share)
    assert found["loss"] == pytest.approx(float(nn.functional.cross_entropy(output, labels)), rel=1e-4)
    assert history.epochs[-1].routing["samples"] == 25
    assert history.epochs[-1].routing["unique"] > 1


def undecided() -> dc.DynamicModel:
    """Decision nets that tell samples apart from the start."""
    dyn = conv_net(GATED)
    with torch.no_grad():
        dyn.get_parameter("dyn.gates.width.head.bias").zero_()
        dyn.get_parameter("dyn.gates.width.head.weight").normal_(std=10)
    return dyn


def test_cost_of_steps() -> None:
    """The mean over the turns of what each spends; no decision net runs in these."""
    dyn = conv_net(GATED)
    turns = tuple(Turn(lambda clock, p=p: p, {"task": task}) for p in (Full(), Smallest()))
    history = run(dyn, recipe(Phase("two", turns, epochs=1)))
    least = float(dyn.macs(dyn.route(0))[0]) / dyn.static_macs
    assert history.steps[0].macs == pytest.approx((1 + least) / 2)


def test_collapse_is_warned_of_once() -> None:
    def biased(moment: Moment) -> Tensor:
        return -moment.record.logits["width"][:, 0].mean()

    turn = Turn(lambda clock: Learned(), {"bias": biased})
    phase = Phase("gates", (turn,), epochs=4, trains="gates", gates=Optimization(rate=0.5))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(conv_net(GATED), recipe(phase), val_data=images(200, seed=2))
    assert len([w for w in caught if w.category is CollapseWarning]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        run(conv_net(GATED), recipe(sandwich()), val_data=images(200, seed=2))


@pytest.mark.filterwarnings("ignore::dyncompile.errors.DyncompileWarning")
def test_target_is_met_at_the_end() -> None:
    dyn = undecided()
    validation = images(200, seed=2)
    history = run(dyn, recipe(gate_phase(gates=Optimization(rate=1e-4)), target=0.95), val_data=validation)
    with torch.no_grad():
        route = dyn.eval().run(validation.tensors[0], policy=Learned())[1]
    share = (float(dyn.macs(route).mean()) + dyn.decision_macs) / dyn.static_macs
    assert history.calibration is not None
    assert share == pytest.approx(0.95, rel=0.02)


class Recorder(GeneralTracker):
    """Keeps what it is told."""

    name = "recorder"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self) -> None:
        super().__init__()
        self.logged: dict[int, dict[str, float]] = {}
        self.config: dict[str, Any] = {}
        self.finished = False

    @property
    def tracker(self) -> None:
        return None

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
        self.logged.setdefault(step or 0, {}).update(values)

    def finish(self) -> None:
        self.finished = True


def test_trackers_are_told_the_same() -> None:
    recorder = Recorder()
    history = run(conv_net(), recipe(), trackers=[recorder], val_data=images(seed=2))
    assert recorder.finished
    assert recorder.config["recipe"] == "test"
    for step in history.steps:
        assert recorder.logged[step.step]["train/task"] == step.terms["task"]
        assert recorder.logged[step.step]["rate/base"] == step.rates["base"]
    for epoch in history.epochs:
        assert recorder.logged[epoch.step - 1]["validation/metric"] == epoch.validation["metric"]


def test_unknown_trackers_are_refused() -> None:
    with pytest.raises(dc.SpecError, match="blackboard"):
        run(conv_net(), recipe(), trackers=["blackboard"])


def test_progress(capfd: pytest.CaptureFixture[str]) -> None:
    updates: list[Update] = []
    history = run(conv_net(), two_phases(), val_data=images(seed=2), progress=updates.append)
    assert [update.loss for update in updates] == history.losses
    assert [(u.phase, u.step, u.steps) for u in updates[:11]] == [
        *(("supernet", i + 1, 10) for i in range(10)),
        ("plain", 1, 10),
    ]
    assert not updates[4].validation
    assert updates[5].validation == history.epochs[0].validation
    assert capfd.readouterr() == ("", "")
    run(conv_net(), recipe(), progress=True)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert all(text in shown.err for text in ("plain 2/2", "10/10", "loss", "MACs 100.0%"))
