"""torch.export (non-strict, dynamic batch) of the training and the evaluation graph over one state.

The two traces share the tensors of one module, so that `.train()` and `.eval()` later choose a graph, not a
set of weights.
"""

from __future__ import annotations

import copy
import inspect
import logging
import traceback
import warnings
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, fx, nn
from torch.export import Dim, export
from torch.utils import _pytree as pytree

from dyncompile.capture.clean import clean_graph
from dyncompile.capture.conversions import observed_dtypes
from dyncompile.capture.remarks import observed_draws, woken
from dyncompile.collector import paused_collector
from dyncompile.errors import CaptureError
from dyncompile.program import MODES, Mode, Program
from dyncompile.signature import Signature, batch_of, forward_signature, make_leaf

Traced = tuple[fx.GraphModule, pytree.TreeSpec]


@paused_collector()
def captured(owned: nn.Module, named: dict[str, Any]) -> Program:
    """The program of a module whose tensors become its state, on arguments by name. Raises CaptureError."""
    forward = forward_signature(owned)
    flat, structure = pytree.tree_flatten(named)
    batch = batch_of(flat)
    leaves = [make_leaf(_path(path), value, batch) for path, value in pytree.tree_flatten_with_path(named)[0]]
    notes = woken(owned)
    owned.eval()  # after training mode: clears tensors that models cache per mode
    traced: dict[Mode, Traced] = {}
    for mode in MODES:
        with observed_draws(mode, notes):
            traced[mode] = _trace(owned, forward, named, batch, mode)
    out_structure, train_structure = traced["eval"][1], traced["train"][1]
    other = None if train_structure == out_structure else train_structure
    state = nn.Module()
    graphs: dict[Mode, fx.Graph] = {
        mode: clean_graph(module, state, owned) for mode, (module, _) in traced.items()
    }
    signature = Signature(forward, structure, tuple(leaves), out_structure, other)
    return Program(graphs=graphs, state=state, signature=signature, notes=(*_notes(traced), *notes))


def _path(keys: Sequence[Any]) -> str:
    return "".join(map(str, keys)).lstrip("['").replace("']", "", 1) or "input"


def _trace(
    owned: nn.Module, forward: inspect.Signature, named: dict[str, Any], batch: int | None, mode: Mode
) -> Traced:
    """One exported graph. The traced module is a structural copy that shares tensors with `owned`."""
    tensors = [*owned.parameters(), *owned.buffers()]
    module = copy.deepcopy(owned, {id(t): t for t in tensors}).train(mode == "train")
    bound = forward.bind_partial()
    bound.arguments.update(named)

    def spec(value: Any) -> Any:
        moves = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == batch
        return {0: Dim.DYNAMIC} if moves else None

    dynamic = {name: pytree.tree_map(spec, value) for name, value in named.items()}
    keywords = _any_keywords(forward, named)
    if keywords:
        dynamic.update(dynamic.pop(keywords))
        _name_keywords(module, forward, keywords, named[keywords])
    try:
        with _quiet(), observed_dtypes():
            program = export(module, bound.args, bound.kwargs, dynamic_shapes=dynamic, strict=False)
            exported = program.module(check_guards=False)
    except Exception as error:  # the user's own Python runs here: anything may come out of it
        raise _explain(error, mode) from error
    assert isinstance(exported, fx.GraphModule)
    structure = program.call_spec.out_spec
    assert structure is not None
    return exported, structure


def _any_keywords(forward: inspect.Signature, named: Mapping[str, Any]) -> str:
    """The parameter like ``**kwargs`` if something was given to it; else empty."""
    kinds = {name: parameter.kind for name, parameter in forward.parameters.items()}
    return next((n for n in named if kinds[n] is inspect.Parameter.VAR_KEYWORD), "")


def _name_keywords(
    module: nn.Module, forward: inspect.Signature, keywords: str, given: Iterable[str]
) -> None:
    """Give `module` a forward that names what is given to ``**kwargs``: torch.export knows sizes by name."""
    original = module.forward

    def forward_by_name(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    others = [parameter for name, parameter in forward.parameters.items() if name != keywords]
    own = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in given]
    untyped: Any = forward_by_name
    untyped.__signature__ = forward.replace(parameters=[*others, *own])
    module.forward = forward_by_name


@contextmanager
def _quiet() -> Generator[None]:
    """Exporting warns and logs about matters of other users; failures still raise."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _explain(error: Exception, mode: Mode) -> CaptureError:
    """The library's error for whatever the export raised, at the user's own line."""
    text = str(error)
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    kind = type(error).__name__
    if "DataDependent" in kind or "data-dependent" in text or "Could not guard" in text:
        problem = f"the model branches on the values of a tensor ({mode} mode): {first}"
        fix = "use torch.where or torch.cond there, or dynamize a submodule without such a branch"
    elif "Constraints violated" in text or "specializ" in text.lower():
        problem = f"the model fixes its batch size ({mode} mode): {first}"
        fix = "take it from x.shape[0] in forward; give example_inputs whose leading size is the batch"
    else:
        problem = f"the model cannot be traced ({mode} mode): {kind}: {first}"
        fix = "check that model(*example_inputs) runs; torch.export(strict=False) must be able to run forward"
    return CaptureError(problem, where=_user_line(error), fix=fix)


def _user_line(error: BaseException) -> str | None:
    """The innermost frame outside of torch and of this package, following causes."""
    found: str | None = None
    chain: BaseException | None = error
    while chain is not None:
        for frame in traceback.extract_tb(chain.__traceback__):
            if "/torch/" not in frame.filename and "/dyncompile/capture/" not in frame.filename:
                if frame.filename.startswith("<"):
                    continue
                found = f"{frame.filename}:{frame.lineno}: {frame.line}"
        chain = chain.__cause__ or chain.__context__
    return found


def _notes(traced: Mapping[Mode, Traced]) -> tuple[str, ...]:
    if traced["train"][1] == traced["eval"][1]:
        return ()
    return ("training mode returns another structure than evaluation mode",)
