"""Records, or a card's figures, against what is measured here.

A number is **same** where every sample has the verdict that it had. Where some have another one, as on
another processor, it **agrees** as long as the 95 % interval of the difference on the same samples
(Tango's) holds 0; of a card's figure, which has no samples, as long as it lies in the 95 % Wilson interval
of what is measured. Else it **differs**. Where there is nothing to be held against each other, nobody
can tell, and a line says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from robench.datasets import DATASETS
from robench.errors import RobenchError, UsageError
from robench.evaluation.runner import Listener
from robench.files import ensure_writable
from robench.models.zoo import LocatedCard, find_card
from robench.preparation import prepare
from robench.records import Outcome, Suite
from robench.registry import names_code, unknown_name
from robench.reporting.leaderboard import attack_column
from robench.reporting.model_results import Bools, ModelResult, collect
from robench.reproduction.findings import Finding
from robench.reproduction.first_samples import FirstSamples, first_samples
from robench.request import GOALS, Request
from robench.results import RecordFilter, Store, StoredRecord
from robench.statistics import PairedCounts, tango_interval, wilson


def reproduce_records(
    records: Sequence[StoredRecord], request: Request, *, listener: Listener | None = None
) -> list[Finding]:
    """Hold records against those of the request's results folder, which gets what it lacks.

    Models and data sets are those of the records' names that are here: no name of a record leads to
    the network or to code. Judged inputs and what was chosen for one model are no protocol, and are
    left out.

    Args:
        records: what is claimed.
        request: where to measure and keep it; ``models``, ``dataset``, ``suite``, ``norm``, ``eps``,
            ``seed`` and ``goal`` are taken from the records, and so is ``n`` where it is None. Of fewer
            samples, the first of those that were claimed of, each has to have its verdict again.
        listener: of the runs.

    Raises:
        UsageError: there is nothing to reproduce, or no claim is of as many samples as ``n``.
        StoreError: the folder cannot be written.
    """
    claims = _claims(records, request.n)
    ensure_writable(Path(request.folder), "--results")
    problems: dict[int, str] = {}
    first: dict[int, FirstSamples] = {}
    for place, claim in enumerate(claims):
        try:
            again = _again(claim, request)
            if (n := _fewer(claim, request.n)) is not None:
                first[place] = first_samples(claim, again, n)
                again = replace(again, n=n)
            prepare(again).run(listener)
        except RobenchError as error:
            problems[place] = str(error)
    measured = _results(Store(request.folder).records())
    found: list[Finding] = []
    for place, claim in enumerate(claims):
        found += _against(claim, measured, problems.get(place, ""), first.get(place))
    return found


def compare_records(
    records: Sequence[StoredRecord],
    measured: Sequence[StoredRecord],
    request: Request | None = None,
) -> list[Finding]:
    """Hold records against others, as :func:`reproduce_records` does; nothing is run.

    Args:
        records: what is claimed.
        measured: what there is.
        request: where the samples are, and ``n``: how many of those that were claimed of ``measured`` is
            of. None: all.

    Raises:
        UsageError: there is nothing to reproduce, or no claim is of as many samples as ``n``.
    """
    request = request or Request()
    claims, there = _claims(records, request.n), _results(measured)
    found: list[Finding] = []
    for claim in claims:
        first, problem = None, ""
        if (n := _fewer(claim, request.n)) is not None:
            try:
                first = first_samples(claim, _of_its_samples(claim, request), n)
            except RobenchError as error:
                problem = str(error)
        found += _against(claim, there, problem, first)
    return found


def reproduce_card(
    model: str, request: Request, *, listener: Listener | None = None
) -> list[Finding]:
    """Hold the figures of a card, its authors' and ours, against a run of the request's suite.

    Args:
        model: a card, or its name in the zoo.
        request: of the run; without ``n`` as many samples as the card's own figures are of.
        listener: of the run.

    Raises:
        UsageError: the card gives no figure.
        RobenchError: as :func:`robench.preparation.prepare`, and what the run raises.
    """
    located = find_card(model)
    figures = list(_figures(located))
    if not figures:
        raise UsageError(
            f"the card of {located.id} gives no accuracy under reported or measured",
            where=located.path,
        )
    n = located.card.provenance.measured.get("n")
    if request.n is None and isinstance(n, int):
        request = replace(request, n=n)
    records = prepare(replace(request, models=(located,))).run(listener)
    (result, *others) = collect(records)
    if others:
        raise UsageError("a card's figures are of one threat model", hint="Give one --eps")
    columns: dict[str, Callable[[], Bools]] = {
        "clean_acc": lambda: result.clean_correct,
        "robust_acc": lambda: result.robust,
    }
    for name in result.attacks:
        columns[attack_column(name)] = _survived(result, name)
    found = []
    for source, name, claimed in figures:
        base = Finding(result.model.name, str(result.group), f"{name} ({source})", claimed)
        if name not in columns:
            found.append(replace(base, why="the suite has no such attack"))
            continue
        hits = columns[name]()
        share = wilson(int(hits.sum()), len(hits)).scaled(100)
        agrees = share.low <= claimed <= share.high
        found.append(
            replace(
                base,
                measured=share.estimate,
                low=share.low,
                high=share.high,
                verdict="agrees" if agrees else "differs",
            )
        )
    return found


def _results(records: Iterable[StoredRecord]) -> list[ModelResult]:
    own = [s for s in records if not s.record.attack.is_judged]
    found = [r for goal in GOALS for r in collect(own, RecordFilter(goal=goal))]
    return [result for result in found if result.n]  # all may be of the class that is aimed at


def _claims(records: Iterable[StoredRecord], n: int | None) -> list[ModelResult]:
    claims = _results(records)
    if not claims:
        raise UsageError("there are no records to reproduce")
    most = max(claim.group.n for claim in claims)
    if n is not None and not 1 <= n <= most:
        raise UsageError(
            f"n = {n}, but the claims are of {most} samples at most",
            hint=f"Choose n from 1 to {most}",
        )
    return claims


def _fewer(claim: ModelResult, n: int | None) -> int | None:
    """How many samples there are to be, where they are fewer than a claim's."""
    return n if n is not None and n < claim.group.n else None


def _figures(located: LocatedCard) -> Iterator[tuple[str, str, float]]:
    """Source, name and percent of every accuracy that a card gives; means and deviations are of
    several runs."""
    origin = located.card.provenance
    for source, table in (("reported", origin.reported), ("measured", origin.measured)):
        for name, value in table.items():
            if name.endswith("_acc") and isinstance(value, (int, float)):
                yield source, name, float(value)


def _survived(result: ModelResult, attack: str) -> Callable[[], Bools]:
    return lambda: result.outcome_is(attack, Outcome.SURVIVED)


def _of_its_samples(claim: ModelResult, request: Request) -> Request:
    """The request for all samples that a claim is of.

    Raises:
        UnknownNameError: the data set is none that is registered here.
        UsageError: an attack is code that the record names.
    """
    data = claim.dataset
    if data.name not in DATASETS and request.dataset is None:
        raise unknown_name("data set", data.name, list(DATASETS))
    specs = [stored.record.attack for stored in claim.attacks.values()]
    for stage in (stage for spec in specs for stage in (spec, *spec.stages)):
        for name in (stage.attack, stage.through or ""):
            if names_code(name):
                raise UsageError(f"the record names code, {name}, which no record may lead to")
    return replace(
        request,
        dataset=data.name if request.dataset is None else request.dataset,
        split=data.split,
        n=data.n,
    )


def _again(claim: ModelResult, request: Request) -> Request:
    """What was asked for when the claim was made; errors as of :func:`_of_its_samples`."""
    threat = claim.threat_model
    return replace(
        _of_its_samples(claim, request),
        models=(find_card(claim.model.id),),
        norm=None if threat.corrupted else threat.norm,
        eps=None if threat.corrupted else threat.written,
        goal=threat.goal,
        targets=threat.targets,
        seed=claim.group.seed,
        draws=next((s.record.draws for s in claim.attacks.values()), request.draws),
        suite=Suite(
            name="claimed", attacks=tuple(item.record.attack for item in claim.attacks.values())
        ),
    )


def _against(
    claim: ModelResult,
    measured: Sequence[ModelResult],
    problem: str,
    first: FirstSamples | None,
) -> Iterator[Finding]:
    """A finding for each number of a claim, or of what it says of its ``first`` samples."""
    group = claim.group if first is None else first.group
    chosen = np.array([first is None or name in first.ids for name in claim.sample_ids])
    under = str(group)
    if first is not None:
        under = under.replace(
            f", n = {group.n},", f", the same {group.n} of {claim.group.n} samples,"
        )
    of = Finding(claim.model.name, under, "", None, n=int(chosen.sum()), of=claim.n)
    columns = ["clean_acc", "robust_acc", *map(attack_column, claim.attacks)]
    attacks = dict(zip(columns[2:], claim.attacks, strict=True))
    there = [r for r in measured if r.group == group and r.model.id == claim.model.id]
    same = [r for r in there if r.model.fingerprint == claim.model.fingerprint]
    # Whatever else was measured: the worst case is over what was claimed of.
    shared = [name for r in same[:1] for name in claim.attacks if name in r.attacks]
    other = next((r.restricted(shared) if shared else r for r in same), None)
    why = problem or (
        "the model here is another network or has other weights"
        if there
        else "there is no such record of this model on these samples"
    )
    for column in columns:
        attack = attacks.get(column)
        before = _hits(claim, column, attack)[chosen]
        claimed = 100 * float(before.mean()) if len(before) else None
        base = replace(of, quantity=column, claimed=claimed)
        if other is None:
            yield replace(base, why=why)
        elif (lacking := _lacking(claim, other, attack, column)) is not None:
            yield replace(base, why=problem or lacking)
        elif claimed is None:
            yield replace(base, why="all of these samples are of the class that is aimed at")
        else:
            yield _held(base, before, _hits(other, column, attack))


def _lacking(claim: ModelResult, other: ModelResult, attack: str | None, column: str) -> str | None:
    """Why a number of the two is not of the same thing."""
    if column == "clean_acc":
        return None
    for name in [attack] if attack is not None else claim.protocol:
        if name not in other.attacks:
            return f"there is no record of {name}"
        if claim.parameters_of(name) != other.parameters_of(name):
            return f"{name} had other parameters"
    return None


def _hits(result: ModelResult, column: str, attack: str | None) -> Bools:
    if attack is not None:
        return _survived(result, attack)()
    return result.clean_correct if column == "clean_acc" else result.robust


def _held(base: Finding, before: Bools, now: Bools) -> Finding:
    """The verdict on two vectors of the same samples."""
    changed = int((before != now).sum())
    interval = tango_interval(PairedCounts.of(now, before)).scaled(100)
    agrees = interval.low <= 0 <= interval.high
    return replace(
        base,
        measured=100 * float(np.mean(now)),
        low=interval.low,
        high=interval.high,
        samples=changed,
        verdict="same" if not changed else "agrees" if agrees else "differs",
    )
