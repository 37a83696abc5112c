"""At full capacity a dynamic model is its source."""

from __future__ import annotations

import copy

import torch

from dyncompile.policies import Full
from dyncompile.state import STATE_PREFIX
from dyncompile.verify.compare import (
    difference,
    step,
)
from dyncompile.verify.report import Check
from dyncompile.verify.subject import Subject


def check_full_eval(subject: Subject, seed: int) -> Check:
    """At full capacity the evaluation output is the source's, bit for bit, at several batch sizes."""
    subject.dyn.eval()
    subject.reference.eval()
    worst, tried = 0.0, list[str]()
    for size in (3, 2, 1, 0):
        args, kwargs = subject.rows(size)
        with torch.no_grad():
            try:
                expected = subject.reference(*args, **kwargs)
            except Exception as error:  # the source itself refuses this batch size: nothing to compare with
                if size >= 2:
                    raise
                tried.append(f"{size} (refused by the source: {type(error).__name__})")
                continue
            worst = max(worst, difference(expected, subject.dyn.run(*args, policy=Full(), **kwargs)[0]))
            tried.append(str(size))
    return Check("full capacity, eval", worst == 0, worst, f"batches {', '.join(tried)}; fused MHA path off")


def check_full_train(subject: Subject, seed: int) -> Check:
    """At full capacity a training step is the source's: output, gradients and buffers, under one seed."""
    dyn, reference = copy.deepcopy(subject.dyn).train(), copy.deepcopy(subject.reference).train()
    args, kwargs = subject.rows(3)
    expected = step(reference, seed, lambda: reference(*args, **kwargs))
    actual = step(dyn, seed, lambda: dyn.run(*args, policy=Full(), **kwargs)[0])
    gradients = {name: p.grad for name, p in reference.named_parameters()}
    ours = {name: p.grad for name, p in dyn.named_parameters() if name in gradients}
    buffers = dict(dyn.named_buffers())
    parts = {
        "output": difference(expected, actual),
        "gradients": difference(gradients, ours),
        "buffers": max(
            (difference(b, buffers[n]) for n, b in reference.named_buffers() if n in buffers), default=0.0
        ),
    }
    return Check(
        "full capacity, train",
        max(parts.values()) == 0,
        max(parts.values()),
        ", ".join(f"{k} {v:.3g}" for k, v in parts.items()),
    )


def check_names(subject: Subject, seed: int) -> Check:
    """Every source key is there with its shape; every new key begins with ``dyn.``."""
    ours = {k: list(v.shape) for k, v in subject.dyn.state_dict().items()}
    source = {k: list(v.shape) for k, v in subject.reference.state_dict().items()}
    problems = [f"{k} {v}" for k, v in source.items() if ours.get(k) != v]
    problems += [k for k in ours if k not in source and not k.startswith(f"{STATE_PREFIX}.")]
    return Check(
        "state names",
        not problems,
        detail=", ".join(problems[:5]) or f"{len(source)} source keys, {len(ours) - len(source)} new",
    )
