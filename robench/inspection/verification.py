"""Are the records of a results folder sound, and do their verdicts still hold?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from robench.datasets import Dataset
from robench.devices import resolve_device
from robench.errors import RobenchError, StoreError, UsageError
from robench.evaluation.adjudicate import Adjudicator
from robench.models.loading import load_model
from robench.models.wrapper import RobenchModel
from robench.records import Outcome
from robench.request import Request
from robench.request_loading import load_samples
from robench.results import Store, StoredRecord
from robench.results.arrays import Array, ArrayRows

__all__ = ["Reverification", "Verified", "check_sources", "reverify", "verify_store"]


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


@dataclass(frozen=True)
class Reverification:
    """What judging again found.

    Attributes:
        judged: samples whose verdict was looked at again.
        disagreements: sample id → what differs.
    """

    judged: int
    disagreements: dict[str, str]


def reverify(
    stored: StoredRecord,
    adversarial: Array | ArrayRows,
    model: RobenchModel,
    dataset: Dataset,
    *,
    device: torch.device,
    batch_size: int = 256,
) -> Reverification:
    """Judge a record's adversarial inputs again, in float32.

    A broken sample's input must be inside the threat model and misclassified, a survivor's must
    not; both must get the prediction that was recorded. A survivor's stored input is the attack's
    best, so this says that it did not succeed, not that none can.

    Args:
        stored: the record and its table.
        adversarial: (n, C, H, W) in [0, 1], in the order of the table's rows.
        model: the model of the record.
        dataset: the samples of the record.
        device: where to run.
        batch_size: inputs at a time.

    Raises:
        UsageError: model or data are not those of the record.
        StoreError: as many adversarial inputs as samples are needed, and are not there.
    """
    check_sources(stored, adversarial, model, dataset)
    record, samples = stored.record, stored.samples
    position = {name: index for index, name in enumerate(dataset.sample_ids)}
    # Where an attack has nothing to show, the clean input is stored and there is no verdict on it.
    rows = [row for row, sample in enumerate(samples) if sample.adv_prediction is not None]
    judge = Adjudicator(model.to(device), record.threat_model, batch_size)
    disagreements: dict[str, str] = {}
    for start in range(0, len(rows), batch_size):
        chosen = rows[start : start + batch_size]
        indices = [position[samples[row].sample_id] for row in chosen]
        verdicts = judge.judge(
            torch.from_numpy(np.ascontiguousarray(adversarial[chosen], np.float32)).to(device),
            dataset.batch(indices).to(device),
            dataset.labels[indices].to(device),
        )
        found = zip(
            chosen,
            verdicts.broken.tolist(),
            verdicts.prediction.tolist(),
            verdicts.allowed.tolist(),
            strict=True,
        )
        for row, broken, prediction, allowed in found:
            sample = samples[row]
            if not allowed:
                disagreements[sample.sample_id] = "the input is outside the threat model"
            elif broken != (sample.outcome is Outcome.BROKEN):
                now = "misclassified" if broken else "classified correctly"
                disagreements[sample.sample_id] = f"recorded as {sample.outcome.value}, now {now}"
            elif prediction != sample.adv_prediction:
                disagreements[sample.sample_id] = (
                    f"recorded prediction {sample.adv_prediction}, now {prediction}"
                )
    return Reverification(len(rows), disagreements)


def check_sources(
    stored: StoredRecord,
    adversarial: Array | ArrayRows,
    model: RobenchModel,
    dataset: Dataset,
) -> None:
    """Refuse a model, samples or adversarial inputs that are not the record's.

    Raises:
        UsageError: model or data are not those of the record.
        StoreError: as many adversarial inputs as samples are needed, and are not there.
    """
    record, samples = stored.record, stored.samples
    if model.summary.fingerprint != record.model.fingerprint:
        raise UsageError(
            "the model is not the one that was evaluated: weights or card differ",
            where=record.model.id,
        )
    if dataset.fingerprint != record.dataset.fingerprint:
        raise UsageError(
            "the samples are not the ones that were used: the fingerprints differ",
            where=record.dataset.name,
        )
    if len(adversarial) != len(samples):
        raise StoreError(
            f"{len(adversarial)} adversarial inputs for {len(samples)} samples", where=stored.path
        )
