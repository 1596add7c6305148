"""Are the records of a results folder sound, and do their verdicts still hold?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from robench.datasets import load_dataset
from robench.devices import resolve_device
from robench.errors import RobenchError, StoreError
from robench.inspection.reverify import reverify
from robench.models.loading import load_model
from robench.results import Store, StoredRecord

__all__ = ["Verified", "verify_store"]


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
    data: str | Path | None = None,
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
    options = dict(root=data, **dict(data_options or {}))
    scan = store.scan()
    found = [Verified(p.key, "", "", False, 0, str(p.error)) for p in scan.problems]
    for stored in scan.records:
        sound, judged, finding = _verify(store, stored, place, dataset, options, trust_pickle)
        record = stored.record
        found.append(
            Verified(record.key, record.model.id, record.attack.name, sound, judged, finding)
        )
    return found


def _verify(
    store: Store,
    stored: StoredRecord,
    device: torch.device,
    dataset: str | None,
    options: dict[str, Any],
    trust_pickle: bool,
) -> tuple[bool, int, str]:
    """Whether one record is sound, how many verdicts were looked at, and what was found."""
    record = stored.record
    try:
        adversarial = store.read_arrays(record.key).get("adversarial")
    except StoreError as error:
        return False, 0, str(error)
    if adversarial is None:
        return True, 0, "files intact; no adversarial inputs kept"
    try:
        model = load_model(record.model.id, trust_pickle=trust_pickle)
        samples = load_dataset(
            dataset or record.dataset.name,
            split=record.dataset.split,
            n=record.dataset.n,
            preprocessing=model.preprocessing,
            **options,
        )
    except RobenchError as error:
        return True, 0, f"files intact; not judged again: {error}"
    try:
        with torch.no_grad():
            again = reverify(stored, adversarial, model, samples, device=device)
    except RobenchError as error:
        return False, 0, str(error)
    if not again.disagreements:
        return True, again.judged, f"{again.judged} verdicts hold"
    first, what = next(iter(again.disagreements.items()))
    count = f"{len(again.disagreements)} of {again.judged}"
    return False, again.judged, f"{count} verdicts differ, first {first}: {what}"
