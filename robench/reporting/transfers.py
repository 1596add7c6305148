"""Transfer: robust accuracy of models on inputs that were made for others.

A **source** is the model, or the ensemble, that inputs were made for, a **target** the model that
judged them. Of samples that the source has wrong without an attack, that errored, or for which its
attack had no try in the ball, there is no input: they count as surviving wherever the target has them
right. Survivors of the source have one, the attack's nearest try, which counts as any other. Where
source and target are one, the numbers are those of the model's own record.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from robench.errors import UsageError
from robench.records import ModelSummary, Outcome
from robench.registry import unknown_name
from robench.reporting.compare import distinct_names
from robench.reporting.model_results import Bools, ModelResult, by_group
from robench.results import StoredRecord
from robench.statistics import Interval, wilson

LOWEST = "lowest of others"
"""The row of a matrix that has, by target, the least that inputs made for others have left"""

_COLUMNS = [
    *("group", "attack", "source", "target", "relation", "n"),
    *("robust_acc", "robust_acc_low", "robust_acc_high"),
    *("broken", "without_input", "source_broken", "transferred"),
]

OWN, MEMBER, OTHER = "own", "member", "other"
"""What a source is to a target: itself, an ensemble that it is a member of, or neither"""


def attacked(table: pd.DataFrame) -> "pd.Series[bool]":
    """Which rows of a record's table have an input that its attack made."""
    judged = table["outcome"].isin([Outcome.BROKEN.value, Outcome.SURVIVED.value])
    return judged & table["perturbation_size"].notna()


@dataclass(frozen=True)
class Transferred:
    """A target on the inputs of a source, by one attack."""

    target: ModelResult
    source: ModelSummary
    attack: str
    relation: str
    """One of :data:`OWN`, :data:`MEMBER` and :data:`OTHER`"""
    stored: StoredRecord
    """Of the target"""

    @property
    def robust_acc(self) -> Interval:
        """Percent of the target's samples that survive, with the 95 % Wilson interval."""
        survived = self.stored.record.count(Outcome.SURVIVED)
        return wilson(survived, self.target.n).scaled(100)

    @property
    def without_input(self) -> int:
        """Samples for which the source has none."""
        judged = self.stored.record.judged
        given = int(attacked(self.stored.table).sum()) if judged is None else judged.inputs
        return self.target.n - given

    def transferred(self, source: ModelResult | None) -> tuple[int, float]:
        """The samples that the source's attack broke, and the percentage of those among them that the
        target has right without an attack that are broken for it too; NaN of none, or where the
        ``source`` is not known."""
        if source is None or self.attack not in source.attacks:
            return 0, np.nan
        broken = source.outcome_is(self.attack, Outcome.BROKEN)
        could = broken & self.target.clean_correct
        share = 100 * self._broken[could].mean() if could.any() else np.nan
        return int(broken.sum()), float(share)

    @property
    def _broken(self) -> Bools:
        table = self.stored.table.set_index("sample_id").loc[list(self.target.sample_ids)]
        return np.asarray(table["outcome"] == Outcome.BROKEN.value)


def transfers_of(members: Sequence[ModelResult]) -> Iterator[Transferred]:
    """What the results of one group judged, and the own records of models and ensembles whose inputs
    they judged, or that judged those of others."""
    for target in members:
        made_by = set()
        for stored in target.transfers:
            made_for = stored.record.made_for
            assert made_for is not None
            relation = MEMBER if target.model.fingerprint in made_for.members else OTHER
            name = made_for.attack.name
            made_by.add(name)
            yield Transferred(target, made_for.model, name, relation, stored)
        for name in sorted(made_by & target.attacks.keys()):
            yield Transferred(target, target.model, name, OWN, target.attacks[name])


def transfer_table(results: Sequence[ModelResult]) -> pd.DataFrame:
    """One row for each source, target and attack.

    Returns:
        Columns ``group``, ``attack``, ``source``, ``target``; ``relation``, ``own``, ``member`` (of the
        ensemble that is the source) or ``other``; ``n``; the target's ``robust_acc`` on the source's
        inputs with its 95 % Wilson interval, in percent; ``broken`` samples; ``without_input``, samples
        that have none; ``source_broken``, what the attack broke of the source; ``transferred``,
        percent of those of them that the target has right without an attack that are broken for it.
        What is undefined is NaN. In order of names.
    """
    rows: list[dict[str, Any]] = []
    for group, members in by_group(results).items():
        # The same weights may have been attacked under two names.
        members = sorted(members, key=lambda result: len(result.transfers))
        known = {result.model.fingerprint: result for result in members}
        names = dict(zip(known, distinct_names(list(known.values())), strict=True))
        for item in transfers_of(list(known.values())):
            accuracy, source = item.robust_acc, known.get(item.source.fingerprint)
            if source is None:
                mark = f"{item.source.name}@{item.source.weights_sha256[:8]}"
                names.setdefault(item.source.fingerprint, mark)
            broken, transferred = item.transferred(source)
            rows.append(
                {
                    "group": str(group),
                    "attack": item.attack,
                    "source": names[item.source.fingerprint],
                    "target": names[item.target.model.fingerprint],
                    "relation": item.relation,
                    "n": item.target.n,
                    "robust_acc": accuracy.estimate,
                    "robust_acc_low": accuracy.low,
                    "robust_acc_high": accuracy.high,
                    "broken": item.stored.record.count(Outcome.BROKEN),
                    "without_input": item.without_input,
                    "source_broken": broken if source is not None else np.nan,
                    "transferred": transferred,
                }
            )
    frame = pd.DataFrame(rows, columns=_COLUMNS).astype({"source_broken": "Int64"})
    order = ["group", "attack", "source", "target"]
    return frame.sort_values(order, kind="stable", ignore_index=True).round(2)


def transfer_matrix(results: Sequence[ModelResult]) -> pd.DataFrame:
    """The robust accuracies of :func:`transfer_table` as matrices, one below the other.

    Returns:
        Columns ``group``, ``attack``, ``source`` and one for each target, ``NAME_acc``; below the
        sources of each attack a row :data:`LOWEST`, over sources that are neither the target nor an
        ensemble with it. NaN where inputs were not judged.
    """
    table, parts = transfer_table(results), []
    for (group, attack), block in table.groupby(["group", "attack"], sort=False):
        matrix = _matrix(block).add_suffix("_acc")
        others = block[block["relation"] == OTHER].groupby("target")["robust_acc"].min()
        matrix.loc[LOWEST] = others.add_suffix("_acc")
        part = matrix.rename_axis(index="source", columns=None).reset_index()
        parts.append(part.assign(group=str(group), attack=str(attack)))
    if not parts:
        return pd.DataFrame(columns=["group", "attack", "source"])
    whole = pd.concat(parts, ignore_index=True)
    head = ["group", "attack", "source"]
    return whole[[*head, *(name for name in whole.columns if name not in head)]]


def matrix_of(table: pd.DataFrame, attack: str | None = None) -> pd.DataFrame:
    """The robust accuracies of a :func:`transfer_table` of one group, sources by targets.

    Args:
        table: of one group.
        attack: by which inputs were made; None: the only one.

    Raises:
        UnknownNameError: there is none of this name.
        UsageError: there are several.
    """
    known = list(table["attack"].unique())
    if attack is None and len(known) != 1:
        raise UsageError(
            f"there are inputs of {len(known)} attacks, not of one: {', '.join(known)}",
            hint="Name one",
        )
    if attack is not None and attack not in known:
        raise unknown_name("attack", attack, known)
    return _matrix(table[table["attack"] == (known[0] if attack is None else attack)])


def _matrix(block: pd.DataFrame) -> pd.DataFrame:
    return block.pivot(index="source", columns="target", values="robust_acc")
