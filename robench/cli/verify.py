"""``robench results verify``: are the records sound, and do their verdicts still hold?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from robench.datasets import load_dataset
from robench.devices import resolve_device
from robench.errors import RobenchError, StoreError
from robench.evaluation.reverify import reverify
from robench.models.loading import load_model
from robench.results import Store

__all__ = ["Verified", "verify_store"]

_ADVERSARIAL = "adversarial"


@dataclass(frozen=True)
class Verified:
    """What was found about one record."""

    key: str
    model: str
    attack: str
    sound: bool
    """Nothing speaks against it."""
    judged: int
    """Samples whose adversarial inputs were judged again."""
    finding: str


def verify_store(
    store: Store,
    *,
    device: str,
    data: Path | None = None,
    data_options: Mapping[str, Any] | None = None,
    dataset: str | None = None,
    trust_pickle: bool = False,
) -> list[Verified]:
    """Check every record's files, and judge again what adversarial inputs are kept.

    Args:
        store: the results folder.
        device: where to judge.
        data, data_options: for the data sets.
        dataset: where the samples are, if the records' name for them does not say.
        trust_pickle: execute the code that weights files carry.

    Raises:
        DeviceError: there is no such device.
    """
    place = resolve_device(device)
    scan = store.scan()
    found = [Verified(p.key, "", "", False, 0, str(p.error)) for p in scan.problems]
    for stored in scan.records:
        record = stored.record
        about = (record.key, record.model.id, record.attack.name)
        try:
            arrays = store.read_arrays(record.key)
        except StoreError as error:
            found.append(Verified(*about, False, 0, str(error)))
            continue
        if _ADVERSARIAL not in arrays:
            found.append(Verified(*about, True, 0, "files intact; no adversarial inputs kept"))
            continue
        try:
            model = load_model(record.model.id, trust_pickle=trust_pickle)
            samples = load_dataset(
                dataset or record.dataset.name,
                split=record.dataset.split,
                root=data,
                n=record.dataset.n,
                preprocessing=model.preprocessing,
                **dict(data_options or {}),
            )
        except RobenchError as error:
            found.append(Verified(*about, True, 0, f"files intact; not judged again: {error}"))
            continue
        try:
            with torch.no_grad():
                again = reverify(stored, arrays[_ADVERSARIAL], model, samples, device=place)
        except RobenchError as error:
            found.append(Verified(*about, False, 0, str(error)))
            continue
        differing = len(again.disagreements)
        finding = f"{again.judged} verdicts hold"
        if differing:
            first, what = next(iter(again.disagreements.items()))
            finding = f"{differing} of {again.judged} verdicts differ, first {first}: {what}"
        found.append(Verified(*about, not differing, again.judged, finding))
    return found
