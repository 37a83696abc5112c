"""Terms of the training loss against numbers computed by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dyncompile as dc
from dyncompile.program import Choice, Domain
from dyncompile.runtime.model import Record
from dyncompile.train import Batch, Clock, Moment
from dyncompile.train.objectives import Consistency, Distillation, TaskLoss, logits_of, target_of
from dyncompile.train.sparsification import ExpectedLoss, Sparsification
from dyncompile.train.worth import RouteWorth, Worth

LABELS = torch.tensor([0, 2, 1])
STUDENT = torch.tensor([[1.0, 0.0, -1.0], [0.5, 0.5, 2.0], [0.0, 3.0, 0.0]])
TEACHER = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0], [-1.0, 0.0, 1.0]])


def one_hot_choice(name: str, width: int) -> Choice:
    rows = torch.eye(width).tolist()
    return Choice(name, Domain.ONE_HOT, tuple(rows[-1]), tuple(rows[0]))


class Scripted(nn.Module):
    """A model whose uniform sub-networks say what a table says: `outputs[level]` is [B, classes]."""

    def __init__(self, outputs: Tensor, widths: Mapping[str, int], costs: Sequence[float] = ()) -> None:
        super().__init__()
        self.outputs = outputs
        self.choices = {name: one_hot_choice(name, width) for name, width in widths.items()}
        self.gated = tuple(widths)
        self.costs = {name: list(costs) or [10.0 * (k + 1) for k in range(w)] for name, w in widths.items()}
        self.static_macs, self.decision_macs = sum(max(cost) for cost in self.costs.values()), 1.0
        self.seen: list[tuple[bool, bool]] = []

    def macs(self, route: Mapping[str, Tensor]) -> Tensor:
        costs = {name: torch.tensor(cost).double() for name, cost in self.costs.items()}
        return torch.stack([rows.double() @ costs[name] for name, rows in route.items()]).sum(0)

    def record(self, *args: Any, policy: dc.Forced, **kwargs: Any) -> Record:
        self.seen.append((self.training, torch.is_grad_enabled()))
        columns = {name: int(policy.route[name].argmax()) for name in self.choices}
        widest = max(self.choices, key=lambda name: self.choices[name].width)
        return Record(self.outputs[columns[widest]], {}, {})


@dataclass
class Given:
    """What a moment is made of."""

    output: Any = None
    target: Any = None
    logits: Mapping[str, Tensor] | None = None
    dyn: Any = None
    teach: Mapping[Any, Tensor] | None = None

    @property
    def moment(self) -> Moment:
        teach = self.teach or {}
        return Moment(
            dyn=cast(dc.DynamicModel, self.dyn),
            batch=Batch((torch.zeros(3, 1),), {}, self.target),
            record=Record(self.output, {}, self.logits or {}),
            loss=F.cross_entropy,
            clock=Clock(0, 10, 7),
            teacher=lambda policy: Record(teach[policy], {}, {}),
            memory={},
        )


# -- the task ---------------------------------------------------------------------------------------


def test_task_loss_is_the_users_loss_times_the_weight() -> None:
    by_hand = -sum(float(STUDENT[i].log_softmax(0)[LABELS[i]]) for i in range(3)) / 3
    assert float(TaskLoss(weight=2.0)(Given(STUDENT, LABELS).moment)) == pytest.approx(2 * by_hand, rel=1e-6)


def test_smoothing_is_label_smoothing() -> None:
    expected = F.cross_entropy(STUDENT, LABELS, label_smoothing=0.1)
    torch.testing.assert_close(TaskLoss(smoothing=0.1)(Given(STUDENT, LABELS).moment), expected)


class Output:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


@pytest.mark.parametrize("output", [STUDENT, Output(STUDENT), {"logits": STUDENT}])
def test_logits_are_found(output: Any) -> None:
    assert logits_of(output) is STUDENT


@pytest.mark.parametrize("output", [(STUDENT,), {"scores": STUDENT}, None])
def test_an_output_without_logits_is_named(output: Any) -> None:
    with pytest.raises(dc.InputError, match=type(output).__name__):
        logits_of(output)


def test_labels_may_be_an_argument_of_the_model() -> None:
    assert target_of(Batch((), {"labels": LABELS}, None)) is LABELS
    with pytest.raises(dc.InputError, match="labels are needed"):
        target_of(Batch((), {}, None))


# -- distillation -----------------------------------------------------------------------------------


def soft_cross_entropy_by_hand(teacher: Tensor, student: Tensor, temperature: float) -> float:
    total = 0.0
    for p, z in zip(teacher.tolist(), student.tolist(), strict=True):
        normalizer = math.log(sum(math.exp(value / temperature) for value in z))
        total -= sum(a * (b / temperature - normalizer) for a, b in zip(p, z, strict=True))
    return total / len(teacher) * temperature**2


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation_is_the_soft_cross_entropy(temperature: float) -> None:
    term = Distillation(weight=0.5, temperature=temperature)
    found = term(Given(STUDENT, teach={dc.Full(): TEACHER}).moment)
    expected = 0.5 * soft_cross_entropy_by_hand((TEACHER / temperature).softmax(1), STUDENT, temperature)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_gradient_is_student_minus_teacher_and_the_teacher_gets_none() -> None:
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    Distillation()(Given(student, teach={dc.Full(): teacher}).moment).backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, (STUDENT.softmax(1) - TEACHER.softmax(1)) / 3)
    assert teacher.grad is None


def test_an_ensemble_is_the_mean_of_probabilities() -> None:
    teach = {dc.Full(): TEACHER, dc.Sampled(7): STUDENT, dc.Sampled(8): -TEACHER}
    term = Distillation(
        others=(lambda clock: dc.Sampled(clock.seed), lambda clock: dc.Sampled(clock.seed + 1))
    )
    mean = (TEACHER.softmax(1) + STUDENT.softmax(1) + (-TEACHER).softmax(1)) / 3
    found = term(Given(STUDENT, teach=teach).moment)
    assert float(found) == pytest.approx(soft_cross_entropy_by_hand(mean, STUDENT, 1.0), rel=1e-5)


def test_dense_outputs_name_their_class_axis() -> None:
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    found = Distillation(axis=1)(Given(student, teach={dc.Full(): teacher}).moment)
    torch.testing.assert_close(found, F.cross_entropy(student, teacher.softmax(1)))


def test_consistency_pulls_a_view_to_the_full_teacher() -> None:
    given = Given(STUDENT, teach={dc.Full(): TEACHER, dc.Smallest(): STUDENT})
    expected = soft_cross_entropy_by_hand(TEACHER.softmax(1), STUDENT, 1.0)
    assert float(Consistency(weight=2.0)(given.moment)) == pytest.approx(2 * expected, rel=1e-5)


def test_a_view_of_another_size_is_an_error() -> None:
    with pytest.raises(dc.InputError, match=r"\[3, 3\] and \[2, 3\]"):
        Distillation()(Given(STUDENT[:2], teach={dc.Full(): TEACHER}).moment)


@pytest.mark.parametrize("make", [lambda: TaskLoss(smoothing=1.0), lambda: Distillation(temperature=0.0)])
def test_bad_settings(make: Any) -> None:
    with pytest.raises(dc.SpecError):
        make()


# -- supervision of gates ---------------------------------------------------------------------------

RIGHT = torch.tensor(
    [  # sample: easy, needs the middle, needs the largest, right only in the middle, hopeless
        [1, 0, 0, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 1, 0, 0],
    ]
)
TARGETS = {
    "try_best": [0, 2, 2, 2, 2],
    "give_up": [0, 2, 2, 0, 0],
    "oracle": [0, 1, 2, 1, 2],
}


def saying(right: Tensor) -> Tensor:
    """Outputs [levels, B, 2] whose top-1 class is 1 where a level is right about the label 1."""
    return F.one_hot(right.long(), 2).float()


@pytest.mark.parametrize("mode", TARGETS)
def test_sparsification_targets(mode: Any) -> None:
    dyn, logits = Scripted(saying(RIGHT), {"width": 3}), torch.randn(5, 3, requires_grad=True)
    given = Given(None, torch.ones(5).long(), {"width": logits}, dyn.train())
    found = Sparsification(mode, weight=0.5)(given.moment)
    by_hand = (
        -sum(float(logits[i].detach().log_softmax(0)[column]) for i, column in enumerate(TARGETS[mode])) / 5
    )
    assert float(found.detach()) == pytest.approx(0.5 * by_hand, rel=1e-5)
    found.backward()
    wanted = (logits.detach().softmax(1) - F.one_hot(torch.tensor(TARGETS[mode]), 3)) / 10
    torch.testing.assert_close(logits.grad, wanted)
    assert set(dyn.seen) == {(False, False)}
    assert dyn.training


def test_labels_may_be_probabilities() -> None:
    dyn, logits = Scripted(saying(RIGHT), {"width": 3}), torch.randn(5, 3)
    hard, soft = torch.ones(5).long(), torch.tensor([0.3, 0.7]).expand(5, 2)
    one, two = (Sparsification("oracle")(Given(None, t, {"width": logits}, dyn).moment) for t in (hard, soft))
    torch.testing.assert_close(one, two)


def test_columns_count_from_the_cheapest() -> None:
    """A resolution choice may list its largest first."""
    dyn = Scripted(saying(RIGHT.flip(0)), {"width": 3}, costs=(30.0, 20.0, 10.0))
    logits = torch.randn(5, 3)
    given = Given(None, torch.ones(5).long(), {"width": logits}, dyn)
    columns = 2 - torch.tensor(TARGETS["oracle"])
    torch.testing.assert_close(Sparsification("oracle")(given.moment), F.cross_entropy(logits, columns))


def test_gates_of_different_widths_share_levels() -> None:
    dyn = Scripted(saying(RIGHT), {"wide": 3, "narrow": 2})
    logits = {"wide": torch.randn(5, 3), "narrow": torch.randn(5, 2)}
    found = Sparsification("try_best")(Given(None, torch.ones(5).long(), logits, dyn).moment)
    narrow = torch.tensor(TARGETS["try_best"]) // 2
    parts = F.cross_entropy(logits["wide"], 2 * narrow), F.cross_entropy(logits["narrow"], narrow)
    torch.testing.assert_close(found, sum(parts) / 2)


def test_the_user_may_say_what_is_correct() -> None:
    dyn, logits = Scripted(saying(RIGHT), {"width": 3}), torch.randn(5, 3)
    given = Given(None, "anything", {"width": logits}, dyn)
    term = Sparsification(correct=lambda output, target: torch.full((5,), target == "anything"))
    torch.testing.assert_close(term(given.moment), F.cross_entropy(logits, torch.zeros(5).long()))
    with pytest.raises(dc.InputError, match=r"\[5\], and came as \[\]"):
        Sparsification(correct=lambda output, target: torch.tensor(True))(given.moment)


def test_a_model_without_gates_is_told_so() -> None:
    dyn = Scripted(saying(RIGHT), {"width": 3})
    dyn.gated = ()
    for term in (Sparsification(), ExpectedLoss()):
        with pytest.raises(dc.SpecError, match=r"(?s)needs a decision net.*width \(one-hot\)"):
            term(Given(None, LABELS, {}, dyn).moment)


def test_a_policy_that_does_not_ask_is_told_so() -> None:
    dyn = Scripted(saying(RIGHT), {"width": 3})
    with pytest.raises(dc.SpecError, match=r"does not ask.*width"):
        Sparsification()(Given(None, LABELS, {}, dyn).moment)


def test_unknown_mode() -> None:
    with pytest.raises(dc.SpecError, match="try_best, give_up, oracle"):
        Sparsification(cast(Any, "tryhard"))


def test_expected_loss_by_hand() -> None:
    outputs, labels = torch.randn(3, 5, 4), torch.tensor([0, 1, 2, 3, 0])
    logits = torch.randn(5, 3, requires_grad=True)
    given = Given(None, labels, {"width": logits}, Scripted(outputs, {"width": 3}))
    total = torch.zeros(())
    for sample in range(5):
        for column in range(3):
            loss = -outputs[column, sample].log_softmax(0)[labels[sample]]
            total = total + logits[sample].softmax(0)[column] * (loss + 0.6 * (column + 1) / 3)
    found = ExpectedLoss(weight=2.0, price=0.6)(given.moment)
    torch.testing.assert_close(found, 2 * total / 5)
    (gradient,) = torch.autograd.grad(found, logits)
    torch.testing.assert_close(gradient, torch.autograd.grad(2 * total / 5, logits)[0])


def test_worth_by_hand() -> None:
    outputs, labels = torch.randn(3, 5, 4), torch.tensor([0, 1, 2, 3, 0])
    logits = torch.randn(5, 3, requires_grad=True)
    given = Given(None, labels, {"width": logits}, Scripted(outputs, {"width": 3}))
    total = torch.zeros(())
    for sample in range(5):
        losses = [-outputs[k, sample].log_softmax(0)[labels[sample]] for k in range(3)]
        wanted = torch.stack([-loss / 0.5 - (k + 1) / 3 for k, loss in enumerate(losses)]).softmax(0)
        total = total + (wanted * (wanted.log() - logits[sample].log_softmax(0))).sum()
    torch.testing.assert_close(Worth()(given.moment), total / 5)


def test_worth_is_for_one_gate() -> None:
    dyn = Scripted(saying(RIGHT), {"a": 3, "b": 3})
    with pytest.raises(dc.SpecError, match="this model has 2"):
        Worth()(Given(None, LABELS, {}, dyn).moment)


def test_worth_of_routes_by_hand() -> None:
    outputs, full = torch.randn(3, 4), torch.randn(3, 4)
    logits = {"a": torch.randn(3, 3, requires_grad=True), "b": torch.randn(3, 2, requires_grad=True)}
    columns = {"a": [2, 0, 1], "b": [0, 1, 0]}
    route = {
        name: F.one_hot(torch.tensor(own), logits[name].shape[1]).float() for name, own in columns.items()
    }
    given = Given(outputs, LABELS, logits, Scripted(outputs[None], {"a": 3, "b": 2}), {dc.Full(): full})
    moment = replace(given.moment, record=Record(outputs, route, logits))
    total = torch.zeros(())
    for sample, label in enumerate(LABELS.tolist()):
        lost = full[sample].softmax(0)[label] - outputs[sample].softmax(0)[label]
        share = sum(own[sample, -1] - own[sample, columns[name][sample]] for name, own in logits.items())
        total = total + (share - lost / 0.2) ** 2
    found = RouteWorth(temperature=0.2)(moment)
    torch.testing.assert_close(found, total / 3)
    gradients = torch.autograd.grad(found, [*logits.values()])
    assert all(bool(one.abs().sum() > 0) for one in gradients)


def test_worth_of_routes_is_refused_without_gates_and_without_warmth() -> None:
    dyn = Scripted(saying(RIGHT), {"a": 3})
    with pytest.raises(dc.SpecError, match="does not ask"):
        RouteWorth()(Given(None, LABELS, {}, dyn, {dc.Full(): TEACHER}).moment)
    with pytest.raises(dc.SpecError, match="positive"):
        RouteWorth(temperature=0.0)


def test_expected_loss_is_for_one_gate() -> None:
    dyn = Scripted(saying(RIGHT), {"a": 3, "b": 3})
    with pytest.raises(dc.SpecError, match="this model has 2"):
        ExpectedLoss()(Given(None, LABELS, {}, dyn).moment)


def test_sparsification_trains_only_the_gates_of_a_real_model() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    dyn = dc.dynamize(net, "dsnet(divisor=1, minimum=1, ratios=(0.5, 1.0))", torch.randn(2, 6)).train()
    x, labels = torch.randn(12, 6), torch.randint(3, (12,))
    record = dyn.record(x, policy=dc.Learned())
    given = Given(record.output, labels, record.logits, dyn)
    moment = Moment(
        dyn, Batch((x,), {}, labels), record, F.cross_entropy, given.moment.clock, lambda p: record, {}
    )
    Sparsification("oracle")(moment).backward()
    with torch.no_grad():
        small = dyn.eval().record(x, policy=dc.Smallest()).output.argmax(1) == labels
    expected = record.logits["width"].softmax(1).detach() - F.one_hot((~small).long(), 2)
    moved = {name for name, p in dyn.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved <= {"dyn.gates.width.head.bias", "dyn.gates.width.head.weight"}
    torch.testing.assert_close(
        dict(dyn.named_parameters())["dyn.gates.width.head.bias"].grad, expected.mean(0)
    )
