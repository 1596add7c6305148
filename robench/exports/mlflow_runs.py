"""MLflow: a run for each record, with its numbers, its table of samples and its files.

The tracking server, or folder, and the experiment are those of MLflow's own settings
(``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME``); without the latter the experiment is ``robench``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from robench.errors import MissingDependencyError
from robench.exports.trackers import about, figures
from robench.results import StoredRecord

_KEY = "robench.key"
"""The tag by which a run is known again"""

_OTHER = re.compile(r"[^\w .:/-]", re.ASCII)
"""What a metric's name must not hold"""


class MlflowRuns:
    """The runs of one experiment."""

    def __init__(self, folder: Path) -> None:
        """MLflow has a place of its own; ``folder`` is not looked at.

        Raises:
            MissingDependencyError: the package mlflow is not installed.
        """
        try:
            import mlflow  # optional
        except ImportError as error:
            raise MissingDependencyError(
                "logging to MLflow needs the package 'mlflow', which is not installed",
                hint="pip install 'robench[mlflow]'",
            ) from error
        self._mlflow: Any = mlflow
        self._is_set = False

    @property
    def place(self) -> str:
        """The tracking server's address, without a user's name in it, or its folder."""
        return re.sub("//[^/@]*@", "//", str(self._mlflow.get_tracking_uri()))

    def log(self, stored: StoredRecord) -> bool:
        """Make a run of a record, unless a finished one has its key."""
        mlflow, record = self._mlflow, stored.record
        chosen = ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID")
        if not self._is_set and not any(name in os.environ for name in chosen):
            mlflow.set_experiment("robench")
        self._is_set = True
        wanted = f"tags.`{_KEY}` = '{record.key}' and attributes.status = 'FINISHED'"
        if mlflow.search_runs(filter_string=wanted, output_format="list", max_results=1):
            return False
        with mlflow.start_run(
            run_name=f"{record.model.name} {record.attack.name} {record.threat_model}",
            nested=mlflow.active_run() is not None,
            tags={_KEY: record.key},
        ):
            mlflow.log_params(about(stored))
            mlflow.log_metrics({_OTHER.sub("_", k): v for k, v in figures(stored).items()})
            mlflow.log_table(stored.table, "samples.json")
            if stored.path is not None:
                for path in sorted(stored.path.parent.glob(f"{record.key}.*")):
                    mlflow.log_artifact(str(path), "record")
        return True
