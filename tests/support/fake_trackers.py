"""Stand-ins for packages of experiment trackers, which remember what they were told."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


def fake_tensorboard(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What is written, by run and name."""
    told: dict[str, list[Any]] = {}

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            self.run = Path(folder)

        def __enter__(self) -> SummaryWriter:
            self.run.mkdir(parents=True, exist_ok=True)
            (self.run / f"events.out.tfevents.{len(told)}").touch()
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def add_scalar(self, name: str, value: float, step: int) -> None:
            told.setdefault(f"{self.run.name}/{name}", []).append((step, value))

        def add_text(self, name: str, text: str, step: int) -> None:
            told.setdefault(f"{self.run.name}/{name}", []).append(text)

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return told


class FakeMlflow(ModuleType):
    """As much of MLflow's fluent interface as is used."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.runs: list[dict[str, Any]] = []
        self.experiment = "Default"
        self.broken = ""
        self._open: list[dict[str, Any]] = []

    def set_experiment(self, name: str) -> None:
        self.experiment = name

    def get_tracking_uri(self) -> str:
        return "http://me:secret@tracking:5000"

    def active_run(self) -> Any:
        return self._open[-1] if self._open else None

    def search_runs(self, filter_string: str, output_format: str, max_results: int) -> list[Any]:
        assert (output_format, max_results) == ("list", 1)
        return [
            run
            for run in self.runs
            if filter_string == f"tags.`robench.key` = '{run['tags']['robench.key']}' and "
            f"attributes.status = '{run['status']}'"
        ]

    def start_run(self, run_name: str, nested: bool, tags: dict[str, str]) -> Any:
        assert nested is bool(self._open)
        run = {"name": run_name, "tags": tags, "status": "RUNNING", "artifacts": []}
        self.runs.append(run)
        self._open.append(run)

        def end(kind: Any, *_: object) -> None:
            self._open.pop()
            run["status"] = "FINISHED" if kind is None else "FAILED"

        manager = SimpleNamespace()
        return type(
            "Run", (), {"__enter__": lambda _: manager, "__exit__": lambda _, *error: end(*error)}
        )()

    def log_params(self, params: dict[str, str]) -> None:
        self._open[-1]["params"] = params

    def log_metrics(self, metrics: dict[str, float]) -> None:
        if self.broken:
            raise ConnectionError(self.broken)
        self._open[-1]["metrics"] = metrics

    def log_table(self, frame: Any, file: str) -> None:
        self._open[-1]["table"] = (file, frame)

    def log_artifact(self, path: str, folder: str) -> None:
        self._open[-1]["artifacts"].append((folder, Path(path).name))


def fake_mlflow(monkeypatch: pytest.MonkeyPatch) -> FakeMlflow:
    """Importable as ``mlflow``."""
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    fake = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return fake
