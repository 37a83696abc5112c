"""Hugging Face models: a class with its default configuration, or a folder that ``save_pretrained`` wrote."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dyncompile.errors import SpecError
from dyncompile.zoo.spec import ModelSpec
from dyncompile.zoo.third_party import third_party

MAX_PARAMETERS = 1_000_000_000
"""A class alone means its default configuration, which for a decoder may be 7 billion parameters: refused,
because random weights of that size serve nobody and exhaust the machine."""

Build = Callable[[ModelSpec, Callable[[], Any]], Any]


def model(spec: ModelSpec, build: Build) -> nn.Module:
    """The model of a class name (random weights) or of a folder (its weights, from safetensors only).

    Raises:
        SpecError: neither exists, a configuration key is unknown, or the model is too large to be meant.
    """
    folder = Path(spec.name).expanduser()
    if folder.is_dir():
        return _stored(spec, folder, build)
    if os.sep in spec.name:
        fix = "give a folder that save_pretrained wrote; nothing is downloaded"
        raise SpecError(f"there is no folder {folder}", where=str(spec), fix=fix)
    return _fresh(spec, _class(spec), build)


def _stored(spec: ModelSpec, folder: Path, build: Build) -> nn.Module:
    if not (folder / "config.json").is_file():
        fix = "give a folder that save_pretrained wrote"
        raise SpecError(f"{folder} holds no config.json", where=str(spec), fix=fix)
    cls = _architecture(spec, folder)
    options = dict(spec.overrides) | {"local_files_only": True, "use_safetensors": True}
    try:
        return build(spec, lambda: cls.from_pretrained(folder, **options))
    except SpecError:
        raise
    except OSError as error:
        fix = "store the weights as safetensors: pickled weights are not read"
        raise SpecError(f"{folder}: {error}", where=str(spec), fix=fix) from error
    except Exception as error:  # the files may be damaged in any way
        raise _unreadable("the model cannot be made", error, spec) from error


def _architecture(spec: ModelSpec, folder: Path) -> Any:
    """The class that the folder's configuration names, else what transformers takes for its kind."""
    transformers = third_party("transformers")
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the file may be damaged in any way
        raise _unreadable("config.json cannot be read", error, spec) from error
    cls = getattr(transformers, str((config.architectures or ["AutoModel"])[0]), None)
    return cls if isinstance(cls, type) and issubclass(cls, nn.Module) else transformers.AutoModel


def _unreadable(what: str, error: Exception, spec: ModelSpec) -> SpecError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return SpecError(
        f"{what}: {' '.join(lines[:2]) or type(error).__name__}",
        where=str(spec),
        fix="give a folder whose config.json and model.safetensors save_pretrained wrote for one model",
    )


def _class(spec: ModelSpec) -> Any:
    transformers = third_party("transformers")
    known = dir(transformers)
    cls = getattr(transformers, spec.name) if spec.name in known else None
    if isinstance(cls, type) and issubclass(cls, nn.Module) and getattr(cls, "config_class", None):
        return cls
    models = [name for name in known if "For" in name or "Model" in name]
    near = difflib.get_close_matches(spec.name, models, n=3)
    fix = f"did you mean {' or '.join(near)}?" if near else "name a model class, or a folder by its path"
    raise SpecError(f"transformers has no model class {spec.name!r}", where=str(spec), fix=fix)


def _fresh(spec: ModelSpec, cls: Any, build: Build) -> nn.Module:
    config = build(spec, lambda: cls.config_class(**_settings(spec, cls.config_class())))
    with torch.device("meta"):
        size = sum(p.numel() for p in build(spec, lambda: cls(config)).parameters())
    if size > MAX_PARAMETERS:
        problem = f"{spec.name} with this configuration has {size / 1e9:.1f} billion parameters"
        fix = "shrink it: ?num_hidden_layers=2&hidden_size=256&vocab_size=1000, or give a folder of weights"
        raise SpecError(problem, where=str(spec), fix=fix)
    return build(spec, lambda: cls(config))


def _settings(spec: ModelSpec, default: Any) -> dict[str, Any]:
    """Overrides under the configuration's own names; ``a.b=1`` reaches into a nested configuration.

    Configurations keep unknown keys without a word, so that a typo would change nothing: it is refused here.
    """
    settings: dict[str, Any] = {}
    for key, value in spec.overrides:
        config, scope = default, settings
        *parents, leaf = key.split(".")
        for parent in parents:
            config = getattr(config, _known(spec, config, parent))
            scope = scope.setdefault(parent, {})
        scope[default.attribute_map.get(leaf, leaf) if _known(spec, config, leaf) else leaf] = value
    return settings


def _known(spec: ModelSpec, config: Any, key: str) -> str:
    if hasattr(config, key):
        return key
    near = difflib.get_close_matches(key, [str(field) for field in config.to_dict()], n=1)
    fix = f"did you mean {near[0]}?" if near else "see the configuration class for its fields"
    raise SpecError(f"{type(config).__name__} has no field {key!r}", where=str(spec), fix=fix)
