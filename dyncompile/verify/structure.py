"""How a model was made: replay, purity, types."""

from __future__ import annotations

from dyncompile.analysis.facts import analyze
from dyncompile.pipeline import apply_passes, spec_of
from dyncompile.spec import parse_spec
from dyncompile.verify.report import Check
from dyncompile.verify.subject import Subject


def check_replay(subject: Subject, seed: int) -> Check:
    """Replaying the history on the source gives the same program; specs read back as the passes they are."""
    passes = [parse_spec(spec) for spec in subject.dyn.history]
    again = apply_passes(subject.source[0], passes)
    same = again.fingerprint == subject.dyn.program.captured_fingerprint
    specs = all(spec_of(one) == spec for one, spec in zip(passes, subject.dyn.history, strict=True))
    return Check("replay and specs", same and specs, detail=" | ".join(subject.dyn.history))


def check_purity(subject: Subject, seed: int) -> Check:
    """Planning and rewriting leave the program that they start from as it is, and plans are repeatable."""
    program, before = subject.source
    facts = analyze(program)
    plans = [[parse_spec(spec).plan(program, facts) for spec in subject.dyn.history[:1]] for _ in range(2)]
    return Check("purity of planning", plans[0] == plans[1] and program.fingerprint == before)


def check_types(subject: Subject, seed: int) -> Check:
    """Every dim of every input is typed or frozen, with a reason, and both graphs agree."""
    dims = subject.dyn.facts.dims
    problems = [
        f"{note.operator} at {note.node}: {note.reason}" for note in (*dims.gaps, *dims.disagreements)
    ]
    problems += [f"{axis.tensor}[{axis.axis}] has no reason" for axis in dims.frozen if not axis.reason]
    return Check(
        "dimension types", not problems, detail="; ".join(problems[:3]) or f"{len(dims.elastic)} elastic dims"
    )
