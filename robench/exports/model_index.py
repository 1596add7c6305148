"""The ``model-index`` block of a Hugging Face model card: YAML with a result for each data set and
threat model of a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from robench.errors import UsageError
from robench.exports.material import Material
from robench.formatting import rounded
from robench.reporting.model_results import ModelResult
from robench.statistics import Interval
from robench.text import visible

_DIGITS = 2


def model_index(material: Material) -> str:
    """A YAML document whose only key is ``model-index``: to be put between the ``---`` lines on top of
    a model's ``README.md``.

    The hub reads one model in such a block: of several it shows all figures under one name.

    Raises:
        UsageError: there is no result, they are of several models, or of attacks with targets.
    """
    results = material.untargeted
    models = {result.model.fingerprint: result.model.name for result in results}
    if len(models) > 1:
        raise UsageError(
            f"a model card is of one model, and there are {len(models)}: {', '.join(models.values())}",
            hint="Name one: robench export MODEL --format model-index",
        )
    shown = [_result(material, result) for result in results]
    content = [{"name": results[0].model.name, "results": shown}]
    return "\n".join(_yaml({"model-index": content})) + "\n"


def _result(material: Material, result: ModelResult) -> dict[str, Any]:
    threat = result.threat_model
    conditions = {"norm": threat.norm, "eps": threat.written, "n": result.n}
    conditions |= {"seed": result.group.seed, "data_sha256": result.group.fingerprint}
    metrics = [_metric("accuracy", "Clean accuracy", result.clean_acc)]
    attacks = ", ".join(result.protocol)
    metrics.append(
        _metric(
            "robust_accuracy",
            f"Robust accuracy, worst case at {threat}",
            result.robust_acc,
            attacks=attacks,
            validity=material.validity(result),
        )
    )
    for name in result.attacks:
        title = f"Robust accuracy under {name} at {threat}"
        metrics.append(_metric("robust_accuracy", title, result.attack_acc(name), attack=name))
    return {
        "task": {"type": "image-classification", "name": "Image Classification"},
        "dataset": {
            "name": result.dataset.name,
            "type": result.dataset.name,
            # The hub tells results apart by their configuration, not by the arguments.
            "config": f"{threat}, n = {result.n}, seed {result.group.seed}",
            "split": result.dataset.split,
            "args": conditions,
        },
        "metrics": metrics,
    }


def _metric(kind: str, name: str, share: Interval, **arguments: Any) -> dict[str, Any]:
    low, high = (rounded(value, _DIGITS) for value in (share.low, share.high))
    return {
        "type": kind,
        "name": name,
        "value": rounded(share.estimate, _DIGITS),
        "args": {"unit": "percent", "low": low, "high": high, "level": 0.95, **arguments},
    }


def _yaml(value: Any, depth: int = 0) -> Iterator[str]:
    """Lines of a mapping; texts are in quotes, so that none is taken for something else."""
    space = "  " * depth
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield f"{space}{name}:"
            yield from _yaml(inner, depth + 1)
        elif isinstance(inner, list):
            yield f"{space}{name}:"
            for item in inner:
                first, *rest = _yaml(item, depth + 1)
                yield f"{space}- {first.lstrip()}"
                yield from rest
        else:
            # JSON's texts and numbers are YAML's.
            plain = visible(inner) if isinstance(inner, str) else inner
            yield f"{space}{name}: {json.dumps(plain, ensure_ascii=False)}"
