"""The models of a page and their verdicts, sample by sample, as plain data for its script."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from robench.formatting import plain
from robench.metric_catalogue import METRICS
from robench.records import ModelCard, Outcome, StageResult, Validation, canonical_hash
from robench.reporting.explorer.packed import packed, size_of
from robench.reporting.leaderboard import attack_column, validation_of, validity
from robench.reporting.model_results import ModelResult, by_group
from robench.results import StoredRecord
from robench.statistics import Interval

OUTCOMES = (Outcome.CLEAN_ERROR, Outcome.BROKEN, Outcome.SURVIVED, Outcome.ERRORED)
"""By their numbers in the page."""

_MOST_DETAIL = 6_000_000
"""Characters of predictions, margins and sizes; where all of them are more, none are there."""

_SECTIONS = ("recipe", "validation", "reported", "measured", "versions")


def result_id(result: ModelResult) -> str:
    """A name for links: the same for the same model under the same conditions, in any folder."""
    group = result.group
    about = [group.dataset, group.threat, group.n, group.fingerprint, group.seed]
    return canonical_hash([*about, result.model.id, result.model.fingerprint])[:12]


def explorer_contents(
    results: Iterable[ModelResult],
    *,
    cards: Iterable[ModelCard] = (),
    validations: Iterable[Validation] = (),
) -> dict[str, Any]:
    """Plain data of untargeted ``results``: groups, and in ``rows`` their models.

    A card belongs to a model of its very fingerprint. Whether predictions, margins and sizes are
    there says ``detailed``: of very many samples they are left out.
    """
    known = {card.fingerprint: card for card in cards}
    judged = list(validations)
    groups, rows = [], []
    for group, members in by_group(results).items():
        dataset = members[0].dataset
        groups.append(
            {
                "label": str(group),
                "dataset": group.dataset,
                "split": dataset.split,
                "data": group.fingerprint,
                "norm": group.norm,
                "eps": members[0].threat_model.written,
                "radius": group.eps,
                "n": group.n,
                "seed": group.seed,
                "classes": list(dataset.class_names),
                "ids": members[0].sample_ids.tolist(),
                "labels": packed(members[0].labels),
            }
        )
        for result in members:
            row = _row(result, known.get(result.model.fingerprint), validation_of(result, judged))
            rows.append({"group": len(groups) - 1, **row})
    details = [attack.pop("detail") for row in rows for attack in row["attacks"]]
    detailed = size_of(details) <= _MOST_DETAIL
    if detailed:
        for attack, detail in zip((a for r in rows for a in r["attacks"]), details, strict=True):
            attack |= detail
    metrics = {
        name: [METRICS[name].label, METRICS[name].meaning]
        for name in METRICS
        if any(name in attack["metrics"] for row in rows for attack in row["attacks"])
    }
    return {"groups": groups, "rows": rows, "metrics": metrics, "detailed": detailed}


def _row(
    result: ModelResult, card: ModelCard | None, validation: Validation | None
) -> dict[str, Any]:
    model = result.model
    flags: dict[tuple[str, str, str], list[str]] = {}
    for name, stored in result.attacks.items():
        for flag in stored.record.flags:
            flags.setdefault((flag.name, flag.severity, flag.evidence), []).append(name)
    return {
        "id": result_id(result),
        "name": model.name,
        "weights": model.weights_sha256,
        "fingerprint": model.fingerprint,
        "robust": _interval(result.robust_acc),
        "clean": _interval(result.clean_acc),
        "validity": validity(result),
        "facts": [
            ["id", model.id],
            ["defense", model.defense],
            ["architecture", model.architecture],
            ["parameters", f"{model.parameters:,}"],
            ["trained for", str(model.threat_model)],
            ["weights, sha256", model.weights_sha256],
        ],
        "card": [] if card is None else _card(card),
        "flags": [
            {"name": n, "severity": s, "evidence": e, "attacks": a}
            for (n, s, e), a in flags.items()
        ],
        "validation": None
        if validation is None
        else {"verdict": validation.verdict, "reasons": list(validation.reasons)},
        "margin": packed(result.clean_margin),
        "attacks": [_attack(result, name, stored) for name, stored in result.attacks.items()],
        "transfers": [_transfer(stored) for stored in result.transfers],
    }


def _transfer(stored: StoredRecord) -> list[Any]:
    """Of inputs that were made for another model: this one, by what, what survives and what does not."""
    record, made_for = stored.record, stored.record.made_for
    assert made_for is not None
    counts = [record.count(outcome) for outcome in (Outcome.SURVIVED, Outcome.BROKEN)]
    return [made_for.model.name, made_for.attack.name, *counts, len(made_for.members)]


def _interval(interval: Interval) -> list[Any]:
    return [plain(interval.estimate), plain(interval.low), plain(interval.high)]


def _attack(result: ModelResult, name: str, stored: StoredRecord) -> dict[str, Any]:
    record = stored.record
    verdicts = np.full(result.n, 255)
    for number, outcome in enumerate(OUTCOMES):
        verdicts[result.outcome_is(name, outcome)] = number
    table = stored.eligible.sort_values("sample_id", kind="stable")
    broke = table["broken_by"].where(table["broken_by"].notna(), "").tolist()
    names = sorted({*broke} - {""})
    predictions = result.column(name, "clean_prediction")
    environment = record.environment
    return {
        "name": name,
        "column": attack_column(name),
        "identity": canonical_hash(result.parameters_of(name))[:16],
        "judged": record.attack.is_judged,
        "about": _settings(record.attack.params),
        "seconds": record.cost.seconds,
        "forwards": record.cost.forwards,
        "backwards": record.cost.backwards,
        "facts": [
            ["record", record.key],
            ["made", record.created],
            ["device", environment.device_name],
            ["searched in", environment.precision],
            ["versions", ", ".join(f"{k} {v}" for k, v in sorted(environment.versions.items()))],
        ],
        "stages": [_stage(stage) for stage in record.stages],
        "audit": None if record.audit is None else record.audit.model_dump(mode="json"),
        "map": record.attention_method,
        "metrics": {
            metric: [summary.mean, summary.mean_broken, summary.mean_survived, summary.n]
            for metric, summary in record.metrics.items()
            if metric in METRICS
        },
        "outcome": packed(verdicts),
        "clean": packed(_whole(predictions)),
        "stage_names": names,
        "detail": {
            "prediction": packed(_whole(result.column(name, "adv_prediction"))),
            "margin": packed(result.column(name, "adv_margin")),
            "size": packed(result.column(name, "perturbation_size")),
            "stage": packed(np.array([names.index(b) if b else -1 for b in broke])),
        },
    }


def _stage(stage: StageResult) -> list[Any]:
    spent = [stage.attempted, stage.broken, stage.errored, stage.forwards, stage.backwards]
    return [stage.name, *spent, stage.seconds, stage.skipped or stage.search or ""]


def _whole(values: Any) -> Any:
    return np.nan_to_num(values, nan=-1).astype(np.int64)


def _settings(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in params.items())


def _card(card: ModelCard) -> list[list[Any]]:
    """Sections of a card: a heading, and pairs of a field and its text."""
    about = card.provenance.model_dump(mode="json", exclude_none=True)
    parts = [
        ("provenance", {k: v for k, v in about.items() if k not in (*_SECTIONS, "examination")})
    ]
    parts += [(name, about.get(name) or {}) for name in _SECTIONS]
    return [[name, [[k, str(v)] for k, v in pairs.items()]] for name, pairs in parts if pairs]
