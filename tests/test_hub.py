"""Hugging Face's conventions, against local folders and a hub that is played."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import dyncompile as dc
from tests import handmade
from tests.support import same, snapshot, subject


def test_a_local_folder(tmp_path: Path) -> None:
    dyn = subject(handmade.plain_cnn).dynamic()
    dyn.save_pretrained(tmp_path / "model", max_shard_size=500)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    loaded = dc.DynamicModel.from_pretrained(tmp_path / "model")
    assert same(snapshot(loaded), snapshot(dyn))
    assert dc.DynamicModel.from_pretrained(str(tmp_path / "model"), source=handmade.plain_cnn()[0])


def test_what_is_pushed_is_what_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client is replaced by one that keeps repositories in a folder."""
    calls: list[dict[str, Any]] = []

    class Api:
        def __init__(self, token: Any) -> None:
            assert token == "secret"

        def create_repo(self, name: str, **given: Any) -> Any:
            calls.append({"created": name, **given})
            return SimpleNamespace(repo_id=f"me/{name}")

        def upload_folder(self, repo_id: str, folder_path: str, **given: Any) -> str:
            shutil.copytree(folder_path, tmp_path / repo_id)
            return f"https://hub/{repo_id}"

    def download(name: str, **given: Any) -> str:
        calls.append(given)
        return str(tmp_path / name)

    client = SimpleNamespace(HfApi=Api, snapshot_download=download)
    monkeypatch.setattr("dyncompile.hub._hub", lambda: client)
    dyn = subject(handmade.plain_cnn).dynamic()
    assert dyn.push_to_hub("net", private=True, token="secret") == "https://hub/me/net"
    loaded = dc.DynamicModel.from_pretrained("me/net", revision="v1")
    assert same(snapshot(loaded), snapshot(dyn))
    assert calls[0] == {"created": "net", "private": True, "exist_ok": True}
    assert calls[1]["revision"] == "v1"
    assert "*.safetensors" in calls[1]["allow_patterns"]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(dc.CheckpointError, match="is no folder and cannot be fetched"):
        dc.DynamicModel.from_pretrained("nobody/nothing", cache_dir=tmp_path, local_files_only=True)
