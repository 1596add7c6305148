"""RobustBench's ``model_info``: a JSON file a model, below data set and threat model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from robench.attacks.suites import load_suite
from robench.exports.material import Material
from robench.files import atomic_write
from robench.formatting import fixed
from robench.records import Provenance
from robench.reporting.model_results import ModelResult
from robench.text import file_name, unused_file_name

STANDARD = ("aa-standard", "reference")
"""Suites whose attacks are AutoAttack's standard version: any other protocol has no place there."""


def write_model_info(material: Material, folder: Path) -> list[Path]:
    """Write ``DATASET/THREAT/NAME.json`` for each result.

    Raises:
        UsageError: there is no result, or they are of attacks with targets.
        StoreError: a file cannot be written.
    """
    written: list[Path] = []
    used: dict[str, set[str]] = {}
    for result in material.untargeted:
        info = model_info(material, result)
        card = material.cards.get(result.model.id)
        own = card.name if card is not None else result.model.id.rpartition("/")[2]
        place = folder / file_name(result.dataset.name) / file_name(result.threat_model.slug)
        mark = f"n{result.n}-seed{result.group.seed}"
        names = used.setdefault(str(place).casefold(), set())
        path = place / f"{unused_file_name(own, names, mark)}.json"
        atomic_write(path, (json.dumps(info, indent=2, ensure_ascii=False) + "\n").encode())
        written.append(path)
    return written


def model_info(material: Material, result: ModelResult) -> dict[str, Any]:
    """A model's results with the field names of RobustBench's ``model_info`` JSON.

    RobustBench writes accuracies as text with two digits. What is not known is None. A record of
    AutoAttack's standard version, of :data:`STANDARD`, gives ``autoattack_acc``. Paper, authors and
    venue are those of the provenance in the model's card.
    """
    card = material.cards.get(result.model.id)
    standard = [
        spec for name in STANDARD for spec in load_suite(name).for_norm(result.threat_model.norm)
    ]
    found = [
        stored
        for spec in standard
        for stored in result.attacks.values()
        if stored.record.attack.identity == spec.identity
    ]
    flags = [flag for stored in found[:1] for flag in stored.record.flags]
    origin = Provenance() if card is None else card.provenance
    venue = " ".join(str(part) for part in (origin.venue, origin.year) if part is not None)
    reported = origin.reported.get("robust_acc")
    notes = [f"n = {result.n}, seed {result.group.seed}"]
    notes += [f"{flag.name} ({flag.severity}): {flag.evidence}" for flag in flags]
    severe = any(flag.severity == "severe" for flag in flags)
    info = {
        "link": origin.link,
        "name": origin.paper,
        "authors": origin.authors,
        "additional_data": None,
        "number_forward_passes": 1,
        "dataset": result.dataset.name,
        "venue": venue if origin.venue is not None else None,
        "architecture": result.model.architecture,
        "eps": result.threat_model.written,
        "clean_acc": fixed(result.clean_acc.estimate, 2),
        "reported": None if reported is None else fixed(reported, 2),
        "autoattack_acc": (
            fixed(result.attack_acc(found[0].record.attack.name).estimate, 2) if found else None
        ),
        "external": None,
        "unreliable": bool(result.errored.any()) or severe or material.is_unreliable(result),
        "footnote": "; ".join(notes),
    }
    card_says = "it has no card" if card is None else "its card does not say"
    why = {
        "autoattack_acc": f"there is no record of {' or '.join(STANDARD)}",
        "additional_data": "no card says whether data were added",
        "external": None,  # RobustBench's own files have it seldom
    }
    for name, value in info.items():
        if value is None and (said := why.get(name, card_says)) is not None:
            material.lacks(result.model.name, name, said)
    return info
