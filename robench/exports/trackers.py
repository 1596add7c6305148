"""Experiment trackers: what each is told of a record.

A tracker is a class and one line here, or an entry point of the group ``robench.trackers``. Naming
them loads none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from robench.errors import StoreError, one_line
from robench.registry import Registry

if TYPE_CHECKING:
    from robench.results import StoredRecord


class Tracker(Protocol):
    """Where people watch their experiments."""

    def __init__(self, folder: Path) -> None:
        """What it keeps in files, without a place of its own for them, is in ``folder``.

        Raises:
            MissingDependencyError: the tracker's package is not installed.
        """

    def log(self, stored: StoredRecord) -> bool:
        """Tell of one record.

        Returns:
            False: it was told before.
        """

    @property
    def place(self) -> str:
        """Where people find it."""


TRACKERS: Registry[type[Tracker]] = Registry("tracker", "robench.trackers")
"""Trackers by name"""

TRACKERS.add("mlflow", "robench.exports.mlflow_runs:MlflowRuns", "a run for each record")
TRACKERS.add("tensorboard", "robench.exports.tensorboard:TensorBoard", "a run for each record")


def trackers(names: Sequence[str], folder: Path) -> dict[str, Tracker]:
    """The trackers that are named, ready to be told, each with a folder of its name in ``folder``.

    Raises:
        UnknownNameError: there is no such tracker; near misses are listed.
        MissingDependencyError: its package is not installed.
    """
    return {name: TRACKERS[name](folder / name) for name in names}


def log_records(found: dict[str, Tracker], records: Iterable[StoredRecord]) -> list[str]:
    """Tell trackers of records.

    Returns:
        A sentence for each tracker: how many it was told, and where they are.

    Raises:
        StoreError: a tracker fails, as where its server does not answer. The records themselves are
            stored.
    """
    known, said = list(records), []
    for name, tracker in found.items():
        try:
            new = sum(tracker.log(stored) for stored in known)
        except Exception as error:  # A server, a database, a full disk.
            raise StoreError(
                f"{name} fails: {type(error).__name__}: {one_line(error)}",
                hint="The records are stored; the same command tells it again",
            ) from error
        before = f", {len(known) - new} were there" if new < len(known) else ""
        said.append(f"{new} records told to {name}{before}: {tracker.place}")
    return said


def about(stored: StoredRecord) -> dict[str, str]:
    """What a record is of."""
    record = stored.record
    found = {
        "model": record.model.id,
        "defense": record.model.defense,
        "architecture": record.model.architecture,
        "weights_sha256": record.model.weights_sha256,
        "dataset": record.dataset.name,
        "split": record.dataset.split,
        "data_sha256": record.dataset.fingerprint,
        "norm": record.threat_model.norm,
        "eps": record.threat_model.written,
        "attack": record.attack.name,
        "n": str(record.n),
        "seed": str(record.seed),
        "device": record.environment.device,
        "precision": record.environment.precision,
        "key": record.key,
    }
    if record.threat_model.targets is not None:
        found["targets"] = str(record.threat_model.targets)
    return found


def figures(stored: StoredRecord) -> dict[str, float]:
    """A record's numbers by name: accuracies with their 95 % interval in percent, or with targets what
    was reached; counts, cost, and the metrics' means. What is undefined is left out."""
    # Loads pandas.
    from robench.reporting.corruptions import corruption_table
    from robench.reporting.model_results import collect
    from robench.reporting.targeted import targeted_table
    from robench.results import RecordFilter

    record = stored.record
    goal = record.threat_model.goal
    found: dict[str, float] = {}
    for result in collect([stored], RecordFilter(goal=goal)):
        found["clean_acc"] = result.clean_acc.estimate
        if goal == "corrupted":
            whole = corruption_table([result]).iloc[0]
            told = [n for n in whole.index if "_acc" in n or n == "mce"]
            found |= {name: float(whole[name]) for name in told if whole[name] == whole[name]}
        elif goal == "targeted":
            row = targeted_table([result]).iloc[-1]
            names = ("targeted_success", "targeted_success_low", "targeted_success_high")
            found |= {name: float(row[name]) for name in names}
        else:
            share = result.attack_acc(record.attack.name)
            found |= {"robust_acc": share.estimate}
            found |= {"robust_acc_low": share.low, "robust_acc_high": share.high}
    found |= {kind.value: float(count) for kind, count in record.counts.items()}
    found |= {"forwards": float(record.cost.forwards), "backwards": float(record.cost.backwards)}
    found["seconds"] = record.cost.seconds
    found |= {
        name: summary.mean for name, summary in record.metrics.items() if summary.mean is not None
    }
    return {name: value for name, value in found.items() if math.isfinite(value)}
