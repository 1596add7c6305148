"""All records of one model under one threat model, seen sample by sample.

Everything that ranks or compares goes through here, so that "robust" means one thing: correct on
the clean input and survived **every** attack that robench ran. A sample that errored anywhere is
not robust. Inputs from elsewhere that robench judged have a column of their own; with all else
that is known they make :mod:`robench.reporting.best_known`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from robench.errors import StoreError, UsageError
from robench.records import DatasetSpec, EvaluationRecord, ModelSummary, Outcome, Suite
from robench.registry import unknown_name
from robench.results import RecordFilter, StoredRecord
from robench.statistics import Interval, wilson
from robench.threat_models import ThreatModel

Bools = npt.NDArray[np.bool_]
_Transfers = dict[tuple[str, str], StoredRecord]

ATTENTION_ATTACK = "pgd-20"
"""The attack whose adversarial inputs attention and representation are reported for. It is the
one that every suite has; a model without it is reported for its first attack with metrics."""

SAME_CONDITIONS = "Evaluate both with the same --dataset, --norm, --eps, --goal, --n and --seed"


@dataclass(frozen=True, order=True)
class GroupKey:
    """What must agree for two results to be comparable."""

    dataset: str
    norm: str
    eps: float
    threat: str
    """The exact threat model: 8/255 and 0.0314 are two."""
    n: int
    fingerprint: str
    seed: int
    written: str = field(default="", compare=False)
    """The threat model as people write it."""

    def __str__(self) -> str:
        data = f"data {self.fingerprint[:8]}"
        return f"{self.dataset} {self.written}, n = {self.n}, seed {self.seed}, {data}"


@dataclass(frozen=True)
class ModelResult:
    """One model's records, one an attack, on the same samples.

    Args:
        group: data, threat model, n and seed.
        attacks: the records by the attack's column name, in order of that name. Where a model
            has several records under one name, the newest.
        transfers: records of inputs that were made for other models, the newest for each of these
            and each attack. They are no attack on this one, and in none of its numbers.
    """

    group: GroupKey
    attacks: Mapping[str, StoredRecord]
    transfers: tuple[StoredRecord, ...] = ()

    @property
    def model(self) -> ModelSummary:
        """The model's summary, from its first record."""
        return self._any.record.model

    @property
    def dataset(self) -> DatasetSpec:
        """The samples' specification."""
        return self._any.record.dataset

    @property
    def threat_model(self) -> ThreatModel:
        """What the attacks were allowed to do."""
        return self._any.record.threat_model

    @property
    def n(self) -> int:
        """Number of samples; without those whose label is the target of all."""
        return len(self.sample_ids)

    @functools.cached_property
    def sample_ids(self) -> npt.NDArray[np.object_]:
        """Ids, sorted; every other per-sample array follows their order."""
        return np.sort(self._any.eligible["sample_id"].to_numpy(dtype=object))

    @functools.cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """True classes, shape (n,)."""
        return self.column(next(iter(self.attacks)), "label").astype(np.int64)

    @functools.cached_property
    def clean_correct(self) -> Bools:
        """Correct without an attack, in every record that knows. Shape (n,)."""
        predicted = np.stack([self.column(name, "clean_prediction") for name in self.attacks])
        known = ~np.isnan(predicted)
        correct = (~known | (predicted == self.labels)).all(axis=0)
        return np.asarray(correct & known.any(axis=0))

    @functools.cached_property
    def clean_margin(self) -> npt.NDArray[np.float64]:
        """The label's logit minus the largest other, of the clean input; NaN: unknown. (n,)."""
        return self.column(next(iter(self.attacks)), "clean_margin")

    @functools.cached_property
    def protocol(self) -> list[str]:
        """The attacks that robench ran; where there are none, the inputs that it judged."""
        judged = {name for name, stored in self.attacks.items() if stored.record.attack.is_judged}
        return [name for name in self.attacks if name not in judged] or list(self.attacks)

    @functools.cached_property
    def robust(self) -> Bools:
        """Survived every attack of the :attr:`protocol`. Shape (n,)."""
        survived = [self.outcome_is(name, Outcome.SURVIVED) for name in self.protocol]
        return np.asarray(np.all(survived, axis=0))

    @functools.cached_property
    def errored(self) -> Bools:
        """Errored under any attack of the :attr:`protocol`. Shape (n,)."""
        errored = [self.outcome_is(name, Outcome.ERRORED) for name in self.protocol]
        return np.asarray(np.any(errored, axis=0))

    @property
    def robust_acc(self) -> Interval:
        """Worst-case robust accuracy with its 95 % Wilson interval, in percent."""
        return self._share(self.robust)

    @property
    def clean_acc(self) -> Interval:
        """Clean accuracy with its 95 % Wilson interval, in percent."""
        return self._share(self.clean_correct)

    def attack_acc(self, attack: str) -> Interval:
        """Robust accuracy under one attack with its 95 % Wilson interval, in percent."""
        return self._share(self.outcome_is(attack, Outcome.SURVIVED))

    @property
    def audit_missed(self) -> float | None:
        """Points of robust accuracy that an attack's audit may have missed, at 95 %.

        Of several audited attacks the largest bound, None without any.
        """
        records = [stored.record for stored in self.attacks.values()]
        audits = [(record.audit, record.n) for record in records if record.audit]
        bounds = [100 * (a.missed_share_upper or 0) * a.survivors / n for a, n in audits]
        return max(bounds, default=None)

    @functools.cached_property
    def class_robust_acc(self) -> dict[int, float]:
        """Worst-case robust accuracy in percent by class; classes without samples are absent."""
        return {
            int(label): 100 * float(self.robust[self.labels == label].mean())
            for label in np.unique(self.labels)
        }

    @property
    def worst_class(self) -> int:
        """The class with the lowest worst-case robust accuracy; the lowest label among equals."""
        return min(self.class_robust_acc, key=self.class_robust_acc.__getitem__)

    @property
    def attention_attack(self) -> str | None:
        """The attack for which metrics are reported; None if no record has any."""
        found = self.attacks_with_metrics
        return ATTENTION_ATTACK if ATTENTION_ATTACK in found else next(iter(found), None)

    @property
    def attacks_with_metrics(self) -> list[str]:
        """The attacks whose records have attention or representation metrics, judged inputs last."""
        in_order = dict.fromkeys([*self.protocol, *self.attacks])
        return [name for name in in_order if self.attacks[name].record.metrics]

    @property
    def attention_record(self) -> EvaluationRecord:
        """The record of :attr:`attention_attack`, which must be there."""
        return self.attacks[self.attention_attack or ""].record

    def restricted(self, attacks: Iterable[str]) -> ModelResult:
        """The same model with only these attacks; the worst case is then over them alone."""
        wanted = set(attacks)
        return replace(self, attacks={k: v for k, v in self.attacks.items() if k in wanted})

    def parameters_of(self, attack: str) -> dict[str, Any]:
        """What decides an attack's numbers: its kind and parameters, not its name."""
        return self.attacks[attack].record.attack.identity

    def metric_mean(self, name: str, attack: str | None = None) -> float:
        """A metric's mean under ``attack``, None: :attr:`attention_attack`; NaN where it is
        undefined or was not measured."""
        asked = attack or self.attention_attack
        summary = None if asked is None else self.attacks[asked].record.metrics.get(name)
        return math.nan if summary is None or summary.mean is None else summary.mean

    def reported(self, metric: str) -> npt.NDArray[np.float64]:
        """A metric under :attr:`attention_attack`, NaN where undefined or not measured. (n,)."""
        attack = self.attention_attack
        return np.full(self.n, np.nan) if attack is None else self.column(attack, metric)

    def outcome_is(self, attack: str, outcome: Outcome) -> Bools:
        """Where the verdict under ``attack`` is ``outcome``. Shape (n,)."""
        return np.asarray(self._tables[attack]["outcome"] == outcome.value)

    @property
    def judged(self) -> Bools:
        """Where :attr:`attention_attack`, if there is one, had a verdict: correct on the clean
        input, then broken or not. (n,)."""
        if (attack := self.attention_attack) is None:
            return np.zeros(self.n, dtype=np.bool_)
        return self.outcome_is(attack, Outcome.BROKEN) | self.outcome_is(attack, Outcome.SURVIVED)

    def column(self, attack: str, name: str) -> npt.NDArray[np.float64]:
        """A numeric column of the attack's table, NaN where undefined or absent. Shape (n,)."""
        table = self._tables[attack]
        if name not in table.columns:
            return np.full(self.n, np.nan)
        return np.asarray(table[name].to_numpy(dtype=np.float64, na_value=np.nan))

    @property
    def _any(self) -> StoredRecord:
        return next(iter(self.attacks.values()))

    def _share(self, hits: Bools) -> Interval:
        return wilson(int(hits.sum()), self.n).scaled(100)

    @functools.cached_property
    def _tables(self) -> dict[str, Any]:
        tables = {}
        for name, stored in self.attacks.items():
            table = stored.eligible.sort_values("sample_id", kind="stable")
            if not np.array_equal(table["sample_id"].to_numpy(dtype=object), self.sample_ids):
                raise StoreError(
                    f"record {name!r} of {self.model.id} has other samples than its data set says",
                    where=stored.path,
                    hint="Set it aside and run the attack again",
                )
            tables[name] = table
        return tables


def collect(
    records: Iterable[StoredRecord],
    wanted: RecordFilter | None = None,
    *,
    suite: Suite | None = None,
) -> list[ModelResult]:
    """Records by group, then model, all untargeted ones; or those that are ``wanted``, by goal too.

    With a suite only attacks that are its own, with its very parameters, under its names.
    """
    wanted = wanted or RecordFilter()
    wanted = replace(wanted, goal=wanted.goal or "untargeted")
    found: dict[tuple[GroupKey, str, str], tuple[dict[str, StoredRecord], _Transfers]] = {}
    # What was chosen for one model by its diagnoses is no attack that others lack.
    protocol = (stored for stored in records if not stored.record.attack.escalation)
    kept = [stored for stored in protocol if wanted.matches(stored.record)]
    # ISO 8601 in UTC sorts by time; the key makes the choice the same on every machine.
    for stored in sorted(kept, key=lambda item: (item.record.created, item.record.key)):
        record, threat = stored.record, stored.record.threat_model
        named, source = [stored], record.made_for
        if suite is not None:
            # A suite may call an attack by another name than the one it was recorded under.
            entries = suite.for_norm(threat.family)
            own = (record.attack if source is None else source.attack).identity
            named = [stored.shown_as(spec.name) for spec in entries if spec.identity == own]
        if not named:
            continue
        group = GroupKey(
            dataset=record.dataset.name,
            norm=threat.family,
            eps=threat.radius,
            threat=threat.identity,
            n=record.n,
            fingerprint=record.dataset.fingerprint,
            seed=record.seed,
            written=str(threat),
        )
        about = group, record.model.id, record.model.fingerprint
        attacks, transfers = found.setdefault(about, ({}, {}))
        if source is None:
            attacks |= {shown.record.attack.name: shown for shown in named}
        else:
            transfers[source.model.fingerprint, source.attack.name] = stored
    return [
        ModelResult(
            group, dict(sorted(attacks.items())), tuple(transfers[k] for k in sorted(transfers))
        )
        for (group, *_), (attacks, transfers) in sorted(found.items(), key=lambda item: item[0])
        if attacks
    ]


def by_group(results: Iterable[ModelResult]) -> dict[GroupKey, list[ModelResult]]:
    """The results that may be compared, together."""
    groups: dict[GroupKey, list[ModelResult]] = {}
    for result in results:
        groups.setdefault(result.group, []).append(result)
    return groups


def find_pair(
    results: Iterable[ModelResult],
    first: str,
    second: str,
    *,
    second_results: Iterable[ModelResult] | None = None,
) -> tuple[ModelResult, ModelResult]:
    """Two models, as :func:`results_of` finds them, in the one group that both are in.

    The second is looked for in ``second_results``, if they are given: a model and its successor
    may bear one name in two folders.

    Raises:
        UnknownNameError: there is no such model; near misses are listed.
        UsageError: they share no group (what differs is named), or several (filter them).
    """
    pool = list(results)
    left = {result.group: result for result in results_of(pool, first)}
    others = pool if second_results is None else list(second_results)
    right = {result.group: result for result in results_of(others, second)}
    shared = sorted(left.keys() & right.keys())
    if not shared:
        one, two = next(iter(left)), next(iter(right))
        raise UsageError(
            f"{first!r} and {second!r} were not evaluated on the same samples under the same "
            f"threat model: {one} against {two}",
            hint=SAME_CONDITIONS,
        )
    if len(shared) > 1:
        raise UsageError(
            f"{first!r} and {second!r} can be compared in several ways: "
            + "; ".join(map(str, shared)),
            hint="Choose one with --dataset, --norm, --eps, --targets, --n or --seed",
        )
    return left[shared[0]], right[shared[0]]


def results_of(results: Iterable[ModelResult], query: str) -> list[ModelResult]:
    """All results of one model: of a name, an id or the end of it, or the start of the weights'
    sha256 (8 digits or more).

    Raises:
        UnknownNameError: there is no such model; near misses are listed.
        UsageError: it stands for several models.
    """
    pool = list(results)
    found = [
        result
        for result in pool
        if query in (result.model.name, result.model.id)
        or result.model.id.endswith(f"/{query}")
        or (len(query) >= 8 and result.model.weights_sha256.startswith(query))
    ]
    if not found:
        raise unknown_name("model", query, sorted({result.model.name for result in pool}))
    # The same weights under several names are one model.
    models = {result.model.fingerprint: result for result in found}
    if len(models) > 1:
        raise UsageError(
            f"{query!r} stands for several models: "
            + ", ".join(f"{r.model.id} ({r.model.weights_sha256[:8]})" for r in models.values()),
            hint="Give the id, or the start of the weights' sha256",
        )
    return found


def class_name(dataset: DatasetSpec, label: int) -> str:
    """A class's name, or its number where the data set has no names."""
    names = dataset.class_names
    return names[label] if 0 <= label < len(names) else str(label)
