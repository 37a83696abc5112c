"""Terms of a training loss: the task itself, and what sub-networks learn from the widest one.

    H(p, z) = -sum_k p_k log softmax(z)_k            soft cross entropy, mean over samples and positions

In-place bootstrapping (DS-Net, CVPR 2021) takes p from the moving average of the weights at full width; its
ensemble takes the mean of several widths. Training sub-networks against the present weights instead is
in-place distillation (Universally Slimmable Networks, ICCV 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from dyncompile.errors import InputError, SpecError
from dyncompile.policies import Full, Policy
from dyncompile.train.phase import Batch, Clock, Moment


def logits_of(output: Any) -> Tensor:
    """The logits in a model's output: the tensor itself, its `.logits`, or its entry "logits".

    Raises:
        InputError: there are none.
    """
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if found is None and isinstance(output, Mapping):
        found = cast("Mapping[str, Any]", output).get("logits")
    if isinstance(found, Tensor):
        return found
    kind = type(output).__name__  # pyright: ignore[reportUnknownArgumentType]
    raise InputError(
        f"no logits in an output of type {kind}",
        fix="return a tensor or something with `.logits`, or give a loss for this output (fit's `loss=`)",
    )


def target_of(batch: Batch) -> Tensor:
    """The labels of a batch: its target, or the `labels` that the model itself takes.

    Raises:
        InputError: there are none.
    """
    found = batch.kwargs.get("labels") if batch.target is None else batch.target
    if isinstance(found, Tensor):
        return found
    raise InputError(
        f"labels are needed as a tensor, the batch has {type(found).__name__}",
        fix="give (input, labels), or tell the term how to judge an output",
    )


def soft_cross_entropy(teacher: Tensor, student: Tensor, temperature: float = 1.0, axis: int = -1) -> Tensor:
    """T^2 H(teacher, softmax(student / T)): a scalar.

    `teacher` holds probabilities, `student` logits of the same shape; T^2 keeps the size of the gradient
    (Hinton et al., 2015).
    """
    if teacher.shape != student.shape:
        raise InputError(
            f"teacher and student differ in shape: {list(teacher.shape)} and {list(student.shape)}",
            fix="a view must keep the number of samples and of predictions per sample",
        )
    log_probabilities = (student.float() / temperature).log_softmax(axis)
    return -(teacher.float() * log_probabilities).sum(axis).mean() * temperature**2


@dataclass(frozen=True, slots=True)
class TaskLoss:
    """``weight`` times the user's loss on the turn's output.

    Attributes:
        weight: factor.
        smoothing: share of the target that is spread evenly over the classes, in [0, 1). Together with cross
            entropy this is label smoothing; `axis` is where the classes lie.
    """

    weight: float = 1.0
    smoothing: float = 0.0
    axis: int = -1

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise SpecError(f"smoothing lies in [0, 1), got {self.smoothing}")

    def __call__(self, moment: Moment) -> Tensor:
        """(1 - s) loss + s H(uniform, logits), times the weight."""
        loss = moment.loss(moment.record.output, moment.batch.target)
        if self.smoothing:
            even = -logits_of(moment.record.output).float().log_softmax(self.axis).mean()
            loss = (1 - self.smoothing) * loss + self.smoothing * even
        return self.weight * loss


@dataclass(frozen=True, slots=True)
class Distillation:
    """Soft cross entropy from the teacher to the turn's output.

    Attributes:
        policy: which network of the teacher speaks.
        weight, temperature: as in `soft_cross_entropy`.
        others: further networks of the teacher, by the clock; the target is the mean of all probabilities
            (DS-Net's ensemble: the smallest network learns from the widest and from random ones).
        axis: where the classes lie; 1 for dense outputs [B, classes, H, W].
    """

    policy: Policy = field(default_factory=Full)
    weight: float = 1.0
    temperature: float = 1.0
    others: Sequence[Callable[[Clock], Policy]] = ()
    axis: int = -1

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise SpecError(f"a temperature is positive, got {self.temperature}")

    def __call__(self, moment: Moment) -> Tensor:
        """Scalar; no gradient reaches the teacher."""
        policies = (self.policy, *(other(moment.clock) for other in self.others))
        found = [self._probabilities(moment, policy) for policy in policies]
        teacher = torch.stack(found).mean(0)
        student = logits_of(moment.record.output)
        return self.weight * soft_cross_entropy(teacher, student, self.temperature, self.axis)

    def _probabilities(self, moment: Moment, policy: Policy) -> Tensor:
        logits = logits_of(moment.teacher(policy).output).detach().float()
        return (logits / self.temperature).softmax(self.axis)


@dataclass(frozen=True, slots=True)
class Consistency:
    """Cross-view training of transformers: one view is pulled to what the widest network says of another.

    The turn looks at another augmentation of the samples (`Turn.view`), the teacher at the samples as loaded,
    at full width. DS-Net++ trains its transformers by multi-view consistency (MvCo); only the name and the
    idea are known to us, its formula and weights are not. This is soft cross entropy, our own choice.
    """

    weight: float = 1.0
    temperature: float = 1.0
    axis: int = -1

    def __call__(self, moment: Moment) -> Tensor:
        """Scalar; no gradient reaches the teacher."""
        inner = Distillation(Full(), self.weight, self.temperature, axis=self.axis)
        return inner(moment)
