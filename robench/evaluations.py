"""What a run gives, and the questions that people ask of it."""

from __future__ import annotations

import html
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import pandas as pd
import torch
from torch import Tensor

from robench.errors import UsageError
from robench.evaluation.runner import Listener
from robench.exports.trackers import log_records, trackers
from robench.preparation import Prepared
from robench.progress import shown
from robench.records import Flag, Outcome, Validation
from robench.registry import unknown_name
from robench.reporting.corruptions import corruption_shares, main_attack
from robench.reporting.export import samples_frame
from robench.reporting.model_results import ModelResult, collect
from robench.results import RecordFilter, Store, StoredRecord
from robench.results.arrays import Rows
from robench.statistics import Interval
from robench.validity.validation import validate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PART = 256
"""Adversarial inputs that are copied at a time"""


class Evaluation(Sequence[StoredRecord]):
    """The records of one run, a sequence of one an attack, model by model and radius by radius.

    Numbers are in percent of all samples, intervals are Wilson's at 95 %. The properties that are
    one number are of one model under one threat model; of more, :attr:`results` has one each.

    Where nothing is to be kept, its files are in a temporary folder that goes with the object.
    """

    def __init__(self, prepared: Prepared, listener: Listener | None = None) -> None:
        """Run what the request's results folder lacks.

        Raises:
            RobenchError: as :meth:`robench.preparation.Prepared.run`.
        """
        request = prepared.request
        if request.results is None:
            folder = tempfile.mkdtemp(prefix="robench-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            request = replace(request, results=folder)
        self.prepared = replace(prepared, request=request)
        """The request, checked, with its models and samples"""
        self._records = tuple(self.prepared.run(listener))

    @overload
    def __getitem__(self, index: int) -> StoredRecord: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[StoredRecord]: ...

    def __getitem__(self, index: int | slice) -> StoredRecord | Sequence[StoredRecord]:
        return self._records[index]

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[StoredRecord]:
        return iter(self._records)

    @cached_property
    def results(self) -> list[ModelResult]:
        """One for each model and radius: accuracies with intervals, and the samples' own outcomes."""
        return collect(self, RecordFilter(goal=self.prepared.request.goal))

    @property
    def result(self) -> ModelResult:
        """The one of :attr:`results`. UsageError: there are several, or none."""
        return _only(self.results)

    @property
    def robust_acc(self) -> float:
        """Worst-case robust accuracy: survived every attack. UsageError: of several results."""
        return self.result.robust_acc.estimate

    @property
    def interval(self) -> Interval:
        """``robust_acc`` with ``low`` and ``high``. UsageError: of several results."""
        return self.result.robust_acc

    @property
    def clean_acc(self) -> float:
        """Accuracy without an attack. UsageError: of several results."""
        return self.result.clean_acc.estimate

    @property
    def by_attack(self) -> dict[str, float]:
        """Robust accuracy under each attack alone; of corruptions the accuracy under each, a mean over
        severities, and of all, ``corruptions_acc``. UsageError: of several results."""
        result = self.result
        if result.threat_model.corrupted is not None:
            shares = corruption_shares(result, main_attack(result))
            return {name: float(share.mean()) for name, share in shares.items()}
        return {name: result.attack_acc(name).estimate for name in result.attacks}

    @property
    def flags(self) -> list[Flag]:
        """Reasons to doubt a number, each once."""
        return list(dict.fromkeys(flag for stored in self for flag in stored.record.flags))

    def to_frame(self) -> pd.DataFrame:
        """One row an attack: ``model``, ``threat_model``, ``attack``, ``n``, ``clean_acc``,
        ``robust_acc`` with ``low`` and ``high``, ``broken``, ``errored`` and ``seconds``."""
        rows = []
        for result in self.results:
            for name, stored in result.attacks.items():
                accuracy = result.attack_acc(name)
                rows.append(
                    {
                        "model": result.model.name,
                        "threat_model": str(result.threat_model),
                        "attack": name,
                        "n": result.n,
                        "clean_acc": result.clean_acc.estimate,
                        "robust_acc": accuracy.estimate,
                        "low": accuracy.low,
                        "high": accuracy.high,
                        "broken": stored.record.count(Outcome.BROKEN),
                        "errored": stored.record.count(Outcome.ERRORED),
                        "seconds": stored.record.cost.seconds,
                    }
                )
        return pd.DataFrame(rows, columns=_COLUMNS)

    @property
    def samples(self) -> pd.DataFrame:
        """One row a sample and attack, as :func:`robench.reporting.export.samples_frame`."""
        return samples_frame(self)

    def adversarial(self, attack: str, model: str | None = None) -> Tensor:
        """The adversarial inputs of an attack, float32 (N, C, H, W) in [0, 1], in the data's order.

        Those that an attack did not break are its nearest try inside the threat model; what was
        misclassified before any attack is as it was.

        Args:
            attack: as in :attr:`by_attack`.
            model: needed where there are several.

        Raises:
            UnknownNameError: no such attack, or model.
            UsageError: there are several results, or the request kept none.
        """
        results = self.results
        if model is not None:
            results = [
                result for result in results if model in (result.model.name, result.model.id)
            ]
            if not results:
                raise unknown_name("model", model, [r.model.name for r in self.results])
        attacks = _only(results).attacks
        if attack not in attacks:
            raise unknown_name("attack", attack, list(attacks))
        if not self.prepared.request.save_adversarial:
            raise UsageError(
                "the adversarial inputs were not kept",
                hint="Evaluate with save_adversarial=True",
            )
        stored = attacks[attack]
        return torch.from_numpy(Store(stored.folder).adversarial_rows(stored.record.key)[:])

    def plot(self, kind: str | None = None, **options: Any) -> Figure:
        """A figure of the records, of one radius: accuracy under each attack with intervals, with
        targets what is reached, of corruptions by severity; or another kind.

        Args:
            kind, options: as for :func:`robench.plot`.

        Raises:
            RobenchError: as :func:`robench.plot`.
        """
        # matplotlib takes half a second.
        from robench.reporting.plots.one_figure import plot

        others = {"targeted": "targeted_success", "corrupted": "corruption_map"}
        usual = others.get(self.prepared.request.goal, "accuracy_by_attack")
        return plot(kind or usual, self, **options)

    def validate(
        self, listener: Listener | None = None, *, progress: bool = True
    ) -> list[Validation]:
        """Say what the numbers are worth, as :func:`robench.validate` does: one a result.

        Raises:
            RobenchError: as :func:`robench.validate`.
        """
        jobs = self.prepared.jobs + len(self.prepared.planned)
        with shown(jobs, listener, progress) as told:
            return validate(self.prepared, told)

    def log(self, *names: str, folder: str | Path = "results") -> list[str]:
        """Tell experiment trackers of the records, as ``robench run --log`` does.

        Args:
            names: ``"mlflow"``, with its own settings, or ``"tensorboard"``.
            folder: where TensorBoard's events go, into a folder of its name.

        Returns:
            A sentence for each: how many records it was told of, and where they are.

        Raises:
            UnknownNameError: there is no such tracker.
            MissingDependencyError: its package is not installed.
            StoreError: it fails.
        """
        return log_records(trackers(names, Path(folder)), self)

    def save(self, folder: str | Path) -> list[Path]:
        """Write the records into a results folder, in place of those with their keys, and its
        leaderboard and page, as ``robench run`` does.

        Returns:
            The leaderboard, the page and what else shows all of the folder's records.

        Raises:
            StoreError: something cannot be written.
        """
        from robench.models.zoo import zoo_cards
        from robench.reporting.publish import publish

        store = Store(folder)
        for stored in self:
            home, key = Store(stored.folder), stored.record.key
            kept = _rows(home, key) if home.has_adversarial(key) else None
            arrays = home.read_arrays(key)
            store.write(stored.record, stored.rows, adversarial=kept, arrays=arrays)
        return publish(store, cards=zoo_cards()).files

    def __repr__(self) -> str:
        return self.to_frame().to_string(index=False, float_format="{:.1f}".format)

    def _repr_html_(self) -> str:
        doubts = "".join(
            f"<li>{html.escape(f'{flag.name} ({flag.severity}): {flag.evidence}')}</li>"
            for flag in self.flags
        )
        table = self.to_frame().to_html(index=False, float_format="{:.1f}".format, escape=True)
        return table + (f"<ul>{doubts}</ul>" if doubts else "")


_COLUMNS = [
    *("model", "threat_model", "attack", "n", "clean_acc", "robust_acc", "low", "high"),
    *("broken", "errored", "seconds"),
]


def _only(results: Sequence[ModelResult]) -> ModelResult:
    if len(results) == 1:
        return results[0]
    named = ", ".join(f"{result.model.name} under {result.threat_model}" for result in results)
    raise UsageError(
        f"there are {len(results)} results, not one" + (f": {named}" if named else ""),
        hint="Take one of .results, or all in .to_frame()",
    )


def _rows(store: Store, key: str) -> Rows:
    rows = store.adversarial_rows(key)
    starts = range(0, len(rows), _PART)
    return Rows(rows.shape, (rows[start : start + _PART] for start in starts))
