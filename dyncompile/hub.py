"""Hugging Face's conventions for a dynamic model: ``save_pretrained``, ``from_pretrained``, ``push_to_hub``.

What is stored is a checkpoint of `dyncompile.save`, nothing else; no library is needed for local folders.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from dyncompile.errors import CheckpointError, SpecError

if TYPE_CHECKING:
    from dyncompile.runtime.model import DynamicModel

_FILES = ("program.json", "graph.json", "*.safetensors", "*.safetensors.index.json")
"""What is fetched of a repository."""


class Pretrained:
    """The three methods, for `DynamicModel` to inherit."""

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        source: str | None = None,
        max_shard_size: int | None = None,
    ) -> Path:
        """`dyncompile.save` under the name that Hugging Face has for it; sizes are in bytes."""
        from dyncompile.checkpoint import SHARD_SIZE, save

        size = SHARD_SIZE if max_shard_size is None else max_shard_size
        return save(cast("DynamicModel", self), save_directory, source=source, shard_size=size)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        source: nn.Module | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> DynamicModel:
        """`dyncompile.load` of a folder, or of a repository on the hub, in evaluation mode.

        Args:
            pretrained_model_name_or_path: a folder, or ``"user/name"``.
            source: see `dyncompile.load`.
            revision, cache_dir, token, local_files_only: of the hub.

        Raises:
            CheckpointError: the folder is damaged, or the repository cannot be fetched.
            SpecError: it is no folder, and huggingface_hub is not installed.
        """
        from dyncompile.checkpoint import load

        folder = Path(pretrained_model_name_or_path)
        if folder.is_dir():
            return load(folder, source)
        try:
            fetched = _hub().snapshot_download(
                str(pretrained_model_name_or_path),
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                local_files_only=local_files_only,
                allow_patterns=list(_FILES),
            )
        except SpecError:
            raise
        except Exception as error:  # the hub's client and the network under it fail in many ways
            raise CheckpointError(
                f"{pretrained_model_name_or_path} is no folder and cannot be fetched: {error}",
                fix="give a folder that save_pretrained wrote, or user/name of a repository within reach",
            ) from None
        return load(fetched, source)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        source: str | None = None,
        commit_message: str = "A dynamic model by dyncompile",
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
    ) -> str:
        """Upload a checkpoint to ``user/name``, which is created if missing; returns the commit's address.

        Raises:
            SpecError: huggingface_hub is not installed.
        """
        api = _hub().HfApi(token=token)
        repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, source=source)
            done = api.upload_folder(
                repo_id=repository, folder_path=folder, commit_message=commit_message, revision=revision
            )
        return str(done)


def _hub() -> Any:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise SpecError("huggingface_hub is not installed", fix="pip install 'dyncompile[hf]'")
    return importlib.import_module("huggingface_hub")
