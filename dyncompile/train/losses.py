"""The default loss and metric: cross-entropy and top-1 accuracy, on tensors or a Hugging Face output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor
from torch.nn import functional as F

from dyncompile.errors import InputError
from dyncompile.train.objectives import logits_of

IGNORED = -100
"""The label that torch's cross-entropy leaves out."""


def default_loss(output: Any, target: Any) -> Tensor:
    """Cross-entropy, mean over the batch; without a target the model's own ``loss``.

    `output` is a tensor or has ``logits``: [B, C] with class indices [B], [B, N, C] with [B, N], [B, C, ...]
    with [B, ...], or with probabilities of the output's shape. Label -100 is ignored, as in torch.

    Raises:
        InputError: labels outside of the classes, neither target nor loss, or no logits.
    """
    if target is None:
        return _own_loss(output)
    logits = logits_of(output)
    if target.is_floating_point():
        return F.cross_entropy(logits, target)
    logits, labels = classes_last(logits, target)
    _check_labels(labels, logits.shape[-1])
    return F.cross_entropy(logits, labels)


def accuracy(output: Any, target: Any) -> float:
    """Share of labels that the largest logit names right; of probabilities the largest is the label.

    Raises:
        InputError: there are no labels, they are out of range, or no classes can be read off them.
    """
    if not isinstance(target, Tensor):
        raise InputError("accuracy needs labels, and the data has none", fix="pass metric=")
    logits, labels = class_labels(logits_of(output), target)
    counted = labels != IGNORED
    right = (logits.argmax(-1) == labels) & counted
    return float(right.sum() / counted.sum().clamp(min=1))


def class_labels(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [n, C] and class indices [n] to judge them by. Raises InputError where there are none."""
    logits, labels = classes_last(logits, target)
    labels = labels.argmax(-1) if labels.is_floating_point() else labels
    _check_labels(labels, logits.shape[-1])
    return logits, labels


def classes_last(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [n, C] with labels [n], or with probabilities [n, C].

    The class axis is the last one, or axis 1 as torch has it for images; of probabilities it is axis 1.
    """
    if target.is_floating_point():
        if target.shape != logits.shape or target.dim() < 2 or target.shape[1] < 2:
            raise InputError(
                f"targets {list(target.shape)} of {target.dtype} are no class probabilities for an output of "
                f"shape {list(logits.shape)}",
                fix="pass metric=, higher is better, or give class indices",
            )
        return logits.movedim(1, -1).flatten(0, -2), target.movedim(1, -1).flatten(0, -2)
    if logits.shape[:-1] == target.shape:
        return logits.flatten(0, -2), target.flatten()
    moved = logits.movedim(1, -1) if logits.dim() > 1 else logits
    if moved.shape[:-1] != target.shape:
        raise InputError(f"labels {list(target.shape)} do not fit an output of shape {list(logits.shape)}")
    return moved.flatten(0, -2), target.flatten()


def _own_loss(output: Any) -> Tensor:
    found = _entry(output, "loss")
    if not isinstance(found, Tensor):
        raise InputError(
            "a batch has no target, and the model's output has no loss of its own",
            fix="let the data give (input, target), or pass loss=",
        )
    return found


def _entry(output: Any, name: str) -> Any:
    if isinstance(output, Mapping):
        return cast("Mapping[str, Any]", output).get(name)
    return getattr(output, name, None)


def _check_labels(labels: Tensor, classes: int) -> None:
    bad = labels[((labels < 0) & (labels != IGNORED)) | (labels >= classes)]
    if len(bad):
        raise InputError(
            f"{len(bad)} of {len(labels)} labels are out of range: {int(bad.min())} to {int(bad.max())}, "
            f"but the model has {classes} classes (0 to {classes - 1})",
            fix="check the labels, or the size of the model's head",
        )
