"""The download calls of other collections' packages, without packages or a network."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from pathlib import Path

import pytest
from torch import nn

__all__ = ["serve_hub", "serve_robustbench"]


class NotInRepositoryError(Exception):
    pass


class NotReachableError(NotInRepositoryError):
    pass


def serve_hub(monkeypatch: pytest.MonkeyPatch, root: Path) -> Path:
    """``huggingface_hub`` whose repositories are the folders ``root/OWNER/NAME``."""

    def hf_hub_download(repo_id: str, filename: str, revision: str | None = None) -> str:
        if revision == "offline":
            raise NotReachableError("no connection")
        if not (root / repo_id).is_dir():
            raise OSError("401 no such\nrepository")
        if not (root / repo_id / filename).is_file():
            raise NotInRepositoryError(filename)
        return str(root / repo_id / filename)

    package, errors = (
        types.ModuleType("huggingface_hub"),
        types.ModuleType("huggingface_hub.errors"),
    )
    package.hf_hub_download = hf_hub_download  # type: ignore[attr-defined]
    errors.EntryNotFoundError = NotInRepositoryError  # type: ignore[attr-defined]
    errors.LocalEntryNotFoundError = NotReachableError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", package)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return root


def serve_robustbench(
    monkeypatch: pytest.MonkeyPatch, networks: Mapping[str, nn.Module]
) -> list[str]:
    """``robustbench`` that has these models, whatever their data set and threat model; returns the
    folders that it was told to keep files in."""
    folders: list[str] = []

    def load_model(
        model_name: str, model_dir: str = "./models", dataset: str = "", threat_model: str = ""
    ) -> nn.Module:
        folders.append(model_dir)
        if model_name not in networks:
            raise KeyError(model_name)
        return networks[model_name]

    package, utils = types.ModuleType("robustbench"), types.ModuleType("robustbench.utils")
    utils.load_model = load_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "robustbench", package)
    monkeypatch.setitem(sys.modules, "robustbench.utils", utils)
    return folders
