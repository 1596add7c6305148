"""Rules that the records of one model must keep, whatever the model: a weaker attack that breaks
more than a stronger one shows that the stronger one was led astray.

Athalye, Carlini & Wagner ("Obfuscated gradients give a false sense of security", ICML 2018) and
Carlini et al. ("On evaluating adversarial robustness", 2019) name most of them. Both attacks met the
same samples, so only those that one broke and the other did not say anything. A rule is broken where
the exact McNemar test, Holm-corrected over all pairs that were compared, speaks for the weaker attack
(p < 0.01), and the interval of the difference lies above what further searches break of sound models
(:data:`robench.statistics.RESOLUTION`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robench.formatting import fixed
from robench.records import AttackSpec, EvaluationRecord, Outcome
from robench.reporting.model_results import Bools
from robench.results import StoredRecord
from robench.statistics import (
    RESOLUTION,
    PairedCounts,
    exact,
    holm,
    is_resolved,
    mcnemar,
    tango_interval,
)

_ALPHA = 0.01

_GRADIENT = {
    "pgd",
    "grid-pgd",
    "apgd",
    "pma",
    "fab",
    "cw-l2",
    "fmn",
    "ddn",
    "art:ProjectedGradientDescent",
}
_BLACK_BOX = {
    "square",
    "hop-skip-jump",
    "art:SquareAttack",
    "art:HopSkipJump",
    "art:BoundaryAttack",
}
_MANY = 10
"""Steps of an attack that is no longer a single step"""

_LARGE = 0.5
"""Under Linf, from here on one grey image lies in the ball of every sample"""

_ROUNDED = 1e-9


@dataclass(frozen=True)
class Rule:
    """What must not be."""

    name: str
    meaning: str
    asks_for: tuple[str, ...]
    """The countermeasures for a model that breaks it"""


RULES = {
    rule.name: rule
    for rule in (
        Rule(
            "one_step_beats_many",
            "a single step breaks more than many",
            ("scale-free", "bpda", "smoothed", "square-more"),
        ),
        Rule(
            "less_beats_more",
            "the same attack breaks more with fewer steps, queries or restarts",
            ("scale-free", "restarts", "smoothed"),
        ),
        Rule(
            "black_box_beats_gradients",
            "a search without gradients breaks more than all that follow them",
            ("bpda", "smoothed", "transfer", "square-more"),
        ),
        Rule(
            "transfer_beats_direct",
            "what breaks another model breaks more than the attack on the model itself",
            ("bpda", "smoothed", "transfer", "distilled", "square-more"),
        ),
        Rule(
            "not_falling_with_eps",
            "fewer samples are broken in a larger ball",
            ("scale-free", "smoothed", "restarts", "square-more"),
        ),
        Rule(
            "large_eps_does_not_reach_chance",
            "samples survive where one image lies in the balls of all",
            ("scale-free", "bpda", "smoothed", "square-more"),
        ),
        Rule("attacked_above_clean", "more survive one attack than are right without", ()),
    )
}


@dataclass(frozen=True)
class Contradiction:
    """A rule that the records of one model break."""

    rule: str
    model: str
    under: str
    evidence: str
    """One sentence with figures"""
    points: float
    """By how much, of all samples"""

    @property
    def asks_for(self) -> tuple[str, ...]:
        """The countermeasures to try."""
        return RULES[self.rule].asks_for


@dataclass(frozen=True)
class _Pair:
    """Two records of which the ``weaker`` must not break more."""

    rule: str
    weaker: StoredRecord
    stronger: str
    """Its name"""
    counts: PairedCounts
    """First: broken by the weaker"""


def contradictions(records: Iterable[StoredRecord]) -> list[Contradiction]:
    """Every rule that records of the same model, samples and norm break, worst first.

    Records of attacks after targets, and of corruptions, take no part: of those, another number is
    asked.
    """
    groups: dict[Any, list[StoredRecord]] = {}
    for stored in records:
        record = stored.record
        # Of inputs from elsewhere nobody knows how hard they were looked for.
        known = not record.attack.is_judged or record.made_for is not None
        if record.threat_model.goal == "untargeted" and known:
            about = record.model.fingerprint, record.dataset.fingerprint, record.threat_model.family
            groups.setdefault(about, []).append(stored)
    found: list[Contradiction] = []
    for members in groups.values():
        ordered = sorted(members, key=lambda s: (s.record.threat_model.eps, s.record.key))
        found += _of_pairs(list(_pairs(ordered)))
        found += _large_eps(ordered)
        found += _above_clean(ordered)
    worst: dict[tuple[str, str, str], Contradiction] = {}
    for item in sorted(found, key=lambda item: -item.points):
        worst.setdefault((item.rule, item.model, item.under), item)
    return list(worst.values())


def _of_pairs(pairs: Sequence[_Pair]) -> Iterator[Contradiction]:
    p_values = holm([mcnemar(pair.counts, "greater") for pair in pairs])
    for pair, p in zip(pairs, p_values, strict=True):
        gap = tango_interval(pair.counts)
        if p >= _ALPHA or gap.low <= RESOLUTION:
            continue
        record, counts = pair.weaker.record, pair.counts
        yield Contradiction(
            rule=pair.rule,
            model=record.model.id,
            under=str(record.threat_model),
            evidence=f"{RULES[pair.rule].meaning}: of {counts.n} samples {_named(record)} broke "
            f"{counts.only_first} that {pair.stronger} did not, and missed {counts.only_second} of "
            f"its own ({fixed(100 * gap.low, 1)} to {fixed(100 * gap.high, 1)} points, p = {p:.2g})",
            points=100 * gap.estimate,
        )


def _named(record: Any) -> str:
    return f"{record.attack.name} under {record.threat_model}"


def _pairs(records: Sequence[StoredRecord]) -> Iterator[_Pair]:
    """Of records of one model, in order of ε: all pairs that a rule compares."""
    for weaker, stronger in itertools.permutations(records, 2):
        one, two = weaker.record, stronger.record
        if one.threat_model == two.threat_model:
            for name, holds in _WEAKER.items():
                if holds(one.attack, two.attack):
                    yield _pair(name, weaker, [stronger])
            if _made_elsewhere_by(one, two.attack):
                yield _pair("transfer_beats_direct", weaker, [stronger])
        elif (
            one.threat_model.eps < two.threat_model.eps
            and one.attack.identity == two.attack.identity
            and one.seed == two.seed
        ):
            yield _pair("not_falling_with_eps", weaker, [stronger])
    for weaker in records:
        if weaker.record.attack.attack in _BLACK_BOX:
            others = [
                other
                for other in records
                if other.record.threat_model == weaker.record.threat_model
                and all(s.attack in _GRADIENT for s in _parts(other.record.attack))
                and any(_steps(s) >= _MANY for s in _parts(other.record.attack))
            ]
            if others:
                yield _pair("black_box_beats_gradients", weaker, others)


def _pair(rule: str, weaker: StoredRecord, stronger: Sequence[StoredRecord]) -> _Pair:
    ids = weaker.table["sample_id"]
    broken = [_broken(other, ids) for other in stronger]
    names = " and ".join(_named(other.record) for other in stronger)
    counts = PairedCounts.of(_broken(weaker, ids), np.any(broken, axis=0))
    return _Pair(rule, weaker, names, counts)


def _broken(stored: StoredRecord, ids: Any) -> Bools:
    table = stored.table.set_index("sample_id").loc[list(ids)]
    return np.asarray(table["outcome"] == Outcome.BROKEN.value)


def _parts(spec: AttackSpec) -> tuple[AttackSpec, ...]:
    return spec.stages or (spec,)


def _steps(spec: AttackSpec) -> int:
    """Steps of a gradient attack; 0 where they are not told."""
    told = spec.params.get("steps", 0 if spec.attack == "pgd" else _MANY)
    return told if isinstance(told, int) else 0


def _one_step(weak: AttackSpec, strong: AttackSpec) -> bool:
    single = weak.attack == "pgd" and _steps(weak) == 1 and _direct(weak)
    return single and all(
        part.attack in _GRADIENT and _steps(part) >= _MANY and _direct(part)
        for part in _parts(strong)
    )


_BUDGET = ("steps", "queries", "restarts")


def _less(weak: AttackSpec, strong: AttackSpec) -> bool:
    """Whether two entries differ in their budget alone, and the first has less of it."""
    if weak.stages or strong.stages or {weak.attack, strong.attack} - _GRADIENT - _BLACK_BOX:
        return False
    one, two = weak.identity, strong.identity
    budgets = [[side["params"].get(name, 1) for name in _BUDGET] for side in (one, two)]
    rest = [
        {**side, "params": {k: v for k, v in side["params"].items() if k not in _BUDGET}}
        for side in (one, two)
    ]
    fewer = all(a <= b for a, b in zip(*budgets, strict=True)) and budgets[0] != budgets[1]
    return rest[0] == rest[1] and fewer and _steps(weak) != 1


def _made_elsewhere_by(record: EvaluationRecord, strong: AttackSpec) -> bool:
    """Whether it is of inputs that the same attack made for another model."""
    made_for = record.made_for
    return made_for is not None and made_for.attack.identity == strong.identity and _direct(strong)


def _through(weak: AttackSpec, strong: AttackSpec) -> bool:
    if weak.stages or strong.stages or _direct(weak) or not _direct(strong):
        return False
    one, two = (spec.identity for spec in (weak, strong))
    return {**one, "through": None} == {**two, "through": None}


def _direct(spec: AttackSpec) -> bool:
    return spec.through is None and spec.output is None


_WEAKER: dict[str, Callable[[AttackSpec, AttackSpec], bool]] = {
    "one_step_beats_many": _one_step,
    "less_beats_more": _less,
    "transfer_beats_direct": _through,
}
"""Rule → whether the first attack must not break more than the second under one threat model"""


def _large_eps(records: Sequence[StoredRecord]) -> Iterator[Contradiction]:
    """From ε = 0.5 under Linf on, mid-grey is in every ball, and right for one class at most."""
    for stored in records:
        record = stored.record
        if record.threat_model.norm != "Linf" or record.threat_model.radius < _LARGE - _ROUNDED:
            continue
        if not any(part.attack in _GRADIENT for part in _parts(record.attack)):
            continue
        if all(_steps(part) == 1 for part in _parts(record.attack)):
            continue
        survived = record.count(Outcome.SURVIVED)
        allowed = int(stored.table["label"].value_counts().max())
        surplus = survived - allowed
        if surplus > 0 and is_resolved(surplus, record.n):
            yield Contradiction(
                rule="large_eps_does_not_reach_chance",
                model=record.model.id,
                under=str(record.threat_model),
                evidence=f"{survived} of {record.n} samples survive {_named(record)}, where mid-grey "
                f"lies in every ball and is right for {allowed} at most",
                points=100 * surplus / record.n,
            )


def _above_clean(records: Sequence[StoredRecord]) -> Iterator[Contradiction]:
    """More survivors of one record than another has samples that are right without an attack."""
    for one, two in itertools.permutations(records, 2):
        ids = one.table["sample_id"]
        table = two.table.set_index("sample_id").loc[list(ids)]
        known = table["clean_prediction"].notna().to_numpy()
        wrong = known & (table["clean_prediction"] != table["label"]).to_numpy(
            dtype=bool, na_value=True
        )
        survived = np.asarray(one.table["outcome"] == Outcome.SURVIVED.value)
        both = int((survived & wrong).sum())
        if both and is_resolved(both, len(ids)):
            gap = exact(both, len(ids)).scaled(100)
            yield Contradiction(
                rule="attacked_above_clean",
                model=one.record.model.id,
                under=str(one.record.threat_model),
                evidence=f"{both} of {len(ids)} samples survive {_named(one.record)} and are wrong "
                f"without an attack in the record of {_named(two.record)}: the model's answers "
                "change",
                points=gap.estimate,
            )
