"""Every Eval Ever: a JSON file a model, data set and threat model, schema 0.2.2.

Only the aggregate level is written: the schema's instance level is of prompts and answers, and has no
place for a sample's outcome under an attack. https://github.com/evaleval/every_eval_ever
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import robench
from robench.errors import UsageError
from robench.exports.material import Material
from robench.files import atomic_write
from robench.formatting import rounded
from robench.reporting.model_results import ModelResult
from robench.statistics import Interval
from robench.text import file_name, unused_file_name

SCHEMA_VERSION = "0.2.2"

_DIGITS = 6


def write_evaluations(material: Material, folder: Path) -> list[Path]:
    """Write ``DATASET/MODEL-THREAT-….json`` for each result.

    Raises:
        UsageError: nobody says who evaluated, there is no result, or they are of attacks with targets.
        StoreError: a file cannot be written.
    """
    organization = material.choices.organization
    if not organization:
        raise UsageError(
            "this format needs source_organization_name, which no record holds: who evaluated",
            hint="Write --organization NAME",
        )
    written = []
    used: dict[str, set[str]] = {}
    for result in material.untargeted:
        place = folder / file_name(result.dataset.name)
        names = used.setdefault(str(place).casefold(), set())
        own = f"{result.model.name}-{result.threat_model.slug}"
        mark = f"n{result.n}-seed{result.group.seed}"
        path = place / f"{unused_file_name(own, names, mark)}.json"
        content = evaluation(result, organization, material.validity(result))
        atomic_write(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
        written.append(path)
    return written


def evaluation(result: ModelResult, organization: str, validity: str) -> dict[str, Any]:
    """One result as the schema has it; the same result always gives the same content.

    ``validity`` is what speaks against it. Times are those of the newest record, which is when the numbers were complete.
    """
    model = result.model
    created = max(stored.record.created for stored in result.attacks.values())
    epoch = str(int(datetime.fromisoformat(created).timestamp()))
    details = {"validity": validity, "errored": str(int(result.errored.sum()))}
    results = [
        {**score, "score_details": score["score_details"] | {"details": details}}
        for score in _scores(result)
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": f"{result.dataset.name}/{model.id}/{epoch}",
        "evaluation_timestamp": created,
        "retrieved_timestamp": epoch,
        "source_metadata": {
            "source_name": "robench",
            "source_type": "evaluation_run",
            "source_organization_name": organization,
            # Whether the model is the evaluator's own is in no record either.
            "evaluator_relationship": "other",
        },
        "eval_library": {"name": "robench", "version": robench.__version__},
        "model_info": {
            "name": model.name,
            "id": model.id,
            "additional_details": {
                "architecture": model.architecture,
                "defense": model.defense,
                "parameters": str(model.parameters),
                "weights_sha256": model.weights_sha256,
            },
        },
        "evaluation_results": results,
    }


def _scores(result: ModelResult) -> Iterator[dict[str, Any]]:
    threat = result.threat_model
    worst = f"survived every attack at {threat}: {', '.join(result.protocol)}"
    yield _score(result, "clean_acc", "Clean accuracy", "no attack", result.clean_acc)
    yield _score(result, "robust_acc", "Robust accuracy", worst, result.robust_acc)
    for name in result.attacks:
        said = f"survived {name} at {threat}"
        share = result.attack_acc(name)
        yield _score(result, "robust_acc", f"Robust accuracy under {name}", said, share, name)


def _score(
    result: ModelResult, metric: str, name: str, said: str, share: Interval, attack: str = ""
) -> dict[str, Any]:
    group, data = result.group, result.dataset
    parameters: dict[str, Any] = {"seed": group.seed}
    if metric == "robust_acc":
        parameters |= {"norm": group.norm, "eps": result.threat_model.written}
    parameters |= {"attack": attack} if attack else {}
    low, score, high = (rounded(v, _DIGITS) for v in (share.low, share.estimate, share.high))
    return {
        "evaluation_result_id": "/".join(
            (group.fingerprint[:12], result.model.fingerprint[:12], metric, attack or "all")
        ),
        "evaluation_name": f"{data.name}: {name.lower()}",
        "source_data": {
            "dataset_name": data.name,
            "source_type": "other",
            "source_id": group.fingerprint,
            "additional_details": {"split": data.split, "n": str(result.n)},
        },
        "metric_config": {
            "evaluation_description": f"Percent of {result.n} images: {said}",
            "metric_id": f"robench.{metric}",
            "metric_name": name,
            "metric_kind": "accuracy",
            "metric_unit": "percent",
            "metric_parameters": parameters,
            "lower_is_better": False,
            "score_type": "continuous",
            "min_score": 0.0,
            "max_score": 100.0,
        },
        "score_details": {
            "score": score,
            "uncertainty": {
                "confidence_interval": {
                    "lower": low,
                    "upper": high,
                    "confidence_level": 0.95,
                    "method": "wilson",
                },
                "num_samples": result.n,
            },
        },
    }
