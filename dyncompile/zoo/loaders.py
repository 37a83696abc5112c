"""``load``: a specification to a model in eval mode with example inputs."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any, cast

from torch import nn

from dyncompile.errors import SpecError
from dyncompile.zoo import huggingface
from dyncompile.zoo.inputs import Inputs, as_inputs, example_inputs, images
from dyncompile.zoo.spec import GRAMMAR, ModelSpec, Source
from dyncompile.zoo.third_party import third_party

Loaded = tuple[nn.Module, Inputs]


def load(spec: str, *, pretrained: bool = False, batch: int = 2) -> Source:
    """Loads a model by name, in eval mode, with random example inputs of ``batch`` samples.

    Weights are random unless ``pretrained`` (which fetches them, for timm and torchvision) or unless the
    specification names a folder of weights. The caller seeds.

    Raises:
        SpecError: the specification cannot be read, names nothing that exists, or needs a missing library.
    """
    parsed = ModelSpec.parse(spec)
    if batch < 1:
        raise SpecError(f"batch is {batch}", where=spec, fix="ask for at least one sample")
    if pretrained and parsed.origin not in ("timm", "torchvision"):
        fix = "name a folder of weights (hf:PATH)" if parsed.origin == "hf" else "load them in the function"
        raise SpecError(f"{parsed.origin} has no weights to fetch", where=spec, fix=fix)
    model, (args, kwargs) = _LOADERS.get(parsed.origin, _function)(parsed, pretrained, batch)
    return Source(str(parsed), model.eval(), args, kwargs)


def _timm(spec: ModelSpec, pretrained: bool, batch: int) -> Loaded:
    timm = third_party("timm")
    _require_name(spec, timm.list_models() if not timm.is_model(spec.name) else [spec.name])
    config = dict(spec.overrides)

    def create(**more: int) -> nn.Module:
        return timm.create_model(spec.name, pretrained=pretrained, **config, **more)

    model = _built(spec, create)
    if "num_classes" not in config and getattr(model, "num_classes", None) == 0:
        # A backbone without a classifier: its stream reaches the output, where every width would be frozen.
        model = _built(spec, lambda: create(num_classes=1000))
    return model, example_inputs(model, batch)


def _torchvision(spec: ModelSpec, pretrained: bool, batch: int) -> Loaded:
    models = third_party("torchvision").models
    _require_name(spec, models.list_models())
    config = dict(spec.overrides)
    weights = config.pop("weights", "DEFAULT" if pretrained else None)
    if spec.name in ("googlenet", "inception_v3") and weights is None:
        # Both draw their weights slowly, value by value, and answer with all their heads in train mode.
        config = {"init_weights": False, "aux_logits": False} | config
    size = config.get("image_size", 299 if spec.name == "inception_v3" else 224)
    model = _built(spec, lambda: models.get_model(spec.name, weights=weights, **config))
    return model, ((images(batch, 3, size, size),), {})


def _hf(spec: ModelSpec, pretrained: bool, batch: int) -> Loaded:
    del pretrained  # refused by `load`: a class has no weights, a folder always has
    model = huggingface.model(spec, _built)
    return model, example_inputs(model, batch)


def _function(spec: ModelSpec, pretrained: bool, batch: int) -> Loaded:
    """The function returns a model, or a model and its example inputs as ``dynamize`` takes them."""
    del pretrained  # refused by `load`
    made = _called(spec, _named(spec))
    model, given = cast(tuple[Any, Any], made) if isinstance(made, tuple) else (made, None)
    if not isinstance(model, nn.Module):
        fix = "return a torch.nn.Module, or (module, example_inputs)"
        problem = f"{spec.name} returned a {type(model).__name__}, not a model"
        raise SpecError(problem, where=str(spec), fix=fix)
    return model, example_inputs(model, batch) if given is None else as_inputs(given)


def call_function(text: str) -> object:
    """What the function of ``package.module:function?key=value`` returns. Raises SpecError."""
    spec = ModelSpec.parse(text)
    return _called(spec, _named(spec))


def _called(spec: ModelSpec, function: Callable[..., object]) -> object:
    """Guards only the binding of arguments: an error inside the user's function keeps its traceback."""
    config = dict(spec.overrides)
    try:
        inspect.signature(function).bind(**config)
    except TypeError as error:
        problem = f"{spec.origin}:{spec.name} cannot be called with ({', '.join(config)}): {error}"
        raise SpecError(problem, where=str(spec), fix="state its arguments as ?key=value") from None
    return function(**config)


def _named(spec: ModelSpec) -> Callable[..., object]:
    try:
        module = importlib.import_module(spec.origin)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{spec.origin}.".startswith(f"{error.name}."):
            raise  # the module was found; an import inside it fails, and its own traceback says where
        near = difflib.get_close_matches(spec.origin, _LOADERS, n=1)
        fix = (
            f"did you mean {near[0]}:{spec.name}?" if near else f"install or add it to PYTHONPATH; {GRAMMAR}"
        )
        raise SpecError(f"there is no module {spec.origin!r}", where=str(spec), fix=fix) from None
    if not callable(getattr(module, spec.name, None)):
        _require_name(spec, [name for name, value in vars(module).items() if callable(value)])
    return getattr(module, spec.name)


def _require_name(spec: ModelSpec, known: Iterable[str]) -> None:
    names = list(known)
    if spec.name in names:
        return
    near = difflib.get_close_matches(spec.name, names, n=3)
    fix = f"did you mean {' or '.join(near)}?" if near else f"choose one of its {len(names)} names"
    raise SpecError(f"{spec.origin} has no model {spec.name!r}", where=str(spec), fix=fix)


def _built(spec: ModelSpec, build: Callable[[], Any]) -> Any:
    """Runs a constructor of another library and says whose arguments it refused."""
    try:
        return build()
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        if not spec.overrides:
            raise
        raise SpecError(
            f"{spec.origin}:{spec.name} refused its configuration: {error}",
            where=str(spec),
            fix=f"check {', '.join(key for key, _ in spec.overrides)}",
        ) from error


_LOADERS: dict[str, Callable[[ModelSpec, bool, int], Loaded]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "hf": _hf,
}
