"""Are the records of a results folder sound, and do their verdicts still hold?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from robench.devices import resolve_device
from robench.errors import RobenchError, StoreError
from robench.inspection.reverify import reverify
from robench.models.loading import load_model
from robench.request import Request
from robench.request_loading import load_samples
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


def verify_store(store: Store, request: Request) -> list[Verified]:
    """Check every record's files, and judge again what adversarial inputs are kept.

    Args:
        store: the results folder.
        request: where to judge, whether to trust what weights files carry, and where the samples
            are: ``dataset`` only if the records' name for them does not say.

    Raises:
        DeviceError: there is no such device.
    """
    device = resolve_device(request.device)
    scan = store.scan()
    found = [Verified(p.key, "", "", False, 0, str(p.error)) for p in scan.problems]
    for stored in scan.records:
        sound, judged, finding = _verify(store, stored, request, device)
        record = stored.record
        found.append(
            Verified(record.key, record.model.id, record.attack.name, sound, judged, finding)
        )
    return found


def _verify(
    store: Store, stored: StoredRecord, request: Request, device: torch.device
) -> tuple[bool, int, str]:
    """Whether one record is sound, how many verdicts were looked at, and what was found."""
    record = stored.record
    try:
        if not store.has_adversarial(record.key):
            store.verify(record.key)
            return True, 0, "files intact; no adversarial inputs kept"
        adversarial = store.adversarial_rows(record.key)
    except StoreError as error:
        return False, 0, str(error)
    try:
        model = load_model(record.model.id, trust_pickle=request.trust_pickle)
        data = record.dataset.name if request.dataset is None else request.dataset
        request = replace(request, dataset=data, split=record.dataset.split, n=record.dataset.n)
        samples = load_samples(request, model.preprocessing)
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
