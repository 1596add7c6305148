"""What formats are made of: the stored results that were asked for, each read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from robench.errors import UsageError
from robench.models.zoo import list_cards
from robench.records import ModelCard, Validation
from robench.reporting.corruptions import corruption_table
from robench.reporting.leaderboard import (
    NO_FLAG,
    build_leaderboard,
    validation_of,
    validity,
)
from robench.reporting.model_results import ModelResult, collect, results_of
from robench.reporting.targeted import targeted_table
from robench.request import GOALS, Request
from robench.results import RecordFilter, Store, StoredRecord
from robench.results.bounds import known_bounds
from robench.results.validations import Validations


@dataclass(frozen=True)
class Choices:
    """What a user may ask of a format.

    Attributes:
        columns: of a table, in this order; none: the format's own.
        digits: after the point, of percentages; None: 1.
        intervals: show them beside the percentages that have one, 95 %.
        samples: all samples of all records in place of the leaderboard.
        against: the baseline of the gate.
        policy: the gate's, a TOML file.
        organization: who evaluated, which no record holds.
    """

    columns: tuple[str, ...] = ()
    digits: int | None = None
    intervals: bool = False
    samples: bool = False
    against: str | None = None
    policy: Path | None = None
    organization: str | None = None

    def __post_init__(self) -> None:
        if self.digits is not None and not 0 <= self.digits <= 6:
            raise UsageError(f"digits is {self.digits}, it must be from 0 to 6")


@dataclass(frozen=True)
class Gap:
    """A field of a format that stays empty."""

    model: str
    field: str
    why: str


@dataclass(frozen=True)
class Material:
    """The results of a folder that are wanted.

    Attributes:
        store: the records' folder.
        wanted: which records.
        models: only these, by name, id or the start of the weights' sha256; none: all.
        choices: what is asked of the format.
        request: where models and samples are, for what reads them.
        given: the store's records; None: all that it holds.
    """

    store: Store
    wanted: RecordFilter = field(default_factory=RecordFilter)
    models: tuple[str, ...] = ()
    choices: Choices = Choices()
    request: Request = field(default_factory=Request)
    given: tuple[StoredRecord, ...] | None = None
    gaps: list[Gap] = field(default_factory=list, compare=False)
    """What could not be filled, in order; whoever exports says so."""

    def lacks(self, model: str, name: str, why: str) -> None:
        """Remember that a field of a model stays empty, and why."""
        self.gaps.append(Gap(model, name, why))

    @cached_property
    def _all_records(self) -> list[StoredRecord]:
        return list(self.store.records() if self.given is None else self.given)

    @cached_property
    def records(self) -> list[StoredRecord]:
        """The records that are wanted, in order of model, threat model, attack and age.

        Raises:
            UnknownNameError: no record is of a model that is named; near misses are listed.
            UsageError: there are no records, or a name stands for several models.
        """
        found = [s for s in self._all_records if self.wanted.matches(s.record)]
        if self.models and found:
            named = {
                fingerprint
                for query in self.models
                for fingerprint in self._fingerprints(found, query)
            }
            found = [s for s in found if s.record.model.fingerprint in named]
        if not found:
            raise UsageError(
                "there are no records to export",
                where=self.store.folder,
                hint="Check the folder and the filters",
            )

        def order(stored: StoredRecord) -> tuple[str, str, str, str]:
            record = stored.record
            return record.model.id, str(record.threat_model), record.attack.name, record.created

        return sorted(found, key=order)

    @staticmethod
    def _fingerprints(records: Sequence[StoredRecord], query: str) -> set[str]:
        # One record a model and goal is enough to tell what a name stands for.
        models = {(s.record.model.fingerprint, s.record.threat_model.goal): s for s in records}
        pool = [r for goal in GOALS for r in collect(models.values(), RecordFilter(goal=goal))]
        return {result.model.fingerprint for result in results_of(pool, query)}

    @cached_property
    def results(self) -> list[ModelResult]:
        """One for each model, threat model and set of samples; of attacks with targets only where
        the goal is named.

        Raises:
            UsageError: all records that are wanted are of attacks with targets.
        """
        found = collect(self.records, self.wanted)
        if not found:
            raise UsageError(
                "all records that are wanted are of targeted attacks or of corruptions",
                where=self.store.folder,
                hint="Write --goal targeted or corrupted for tables of them; the other formats have no field for it",
            )
        return found

    @property
    def untargeted(self) -> list[ModelResult]:
        """The results, for a format that has no field for targets.

        Raises:
            UsageError: those with targets were asked for.
        """
        if self.wanted.goal not in (None, "untargeted"):
            raise UsageError(
                f"this format has no field for {self.wanted.goal} results",
                hint=f"Export latex, markdown, csv or parquet with --goal {self.wanted.goal}",
            )
        return self.results

    @cached_property
    def table(self) -> pd.DataFrame:
        """The leaderboard of the results, or the table of targets."""
        results = self.results
        if self.wanted.goal == "targeted":
            return targeted_table(results)
        if self.wanted.goal == "corrupted":
            return corruption_table(results)
        return build_leaderboard(
            [stored for result in results for stored in result.attacks.values()],
            known=self._all_records,
            bounds=known_bounds(self.store),
            validations=self._validations,
        )

    @cached_property
    def _validations(self) -> list[Validation]:
        return list(Validations(self.store).all())

    def is_unreliable(self, result: ModelResult) -> bool:
        """Whether a validation calls its number unreliable."""
        judged = validation_of(result, self._validations)
        return judged is not None and judged.verdict == "unreliable"

    def validity(self, result: ModelResult) -> str:
        """What speaks against a result by itself, whatever the other models met."""
        said = validity(result)
        if not self.is_unreliable(result):
            return said
        return ";".join([*([] if said == NO_FLAG else [said]), "unreliable"])

    @cached_property
    def cards(self) -> Mapping[str, ModelCard]:
        """The cards of the zoo by id; those that cannot be read are left out."""
        return {located.id: located.card for located in list_cards(problems=[])}
