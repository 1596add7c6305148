"""Are the records of a results folder sound, and do their verdicts still hold?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from robench.datasets import DATASETS, Dataset
from robench.devices import resolve_device
from robench.errors import RobenchError, StoreError, UsageError
from robench.evaluation.adjudicate import Adjudicator
from robench.evaluation.adversarial_inputs import KeptInputs
from robench.evaluation.repeated_draws import MostOfDraws, drawn_flag
from robench.models.loading import load_model
from robench.models.wrapper import RobenchModel
from robench.models.zoo import find_card
from robench.records import DatasetSpec, Outcome
from robench.registry import unknown_name
from robench.request import Request
from robench.request_loading import load_samples
from robench.results import Store, StoredRecord
from robench.results.arrays import Array, ArrayRows


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
    return found + [_verify(store, stored, request, device) for stored in scan.records]


def _verify(store: Store, stored: StoredRecord, request: Request, device: torch.device) -> Verified:
    record = stored.record
    # Called with: is it sound, how many verdicts were looked at, what was found.
    verified = partial(Verified, record.key, record.model.id, record.attack.name)
    try:
        if not store.has_adversarial(record.key):
            store.verify(record.key)
            return verified(True, 0, "files intact; no adversarial inputs kept")
        adversarial = store.adversarial_rows(record.key)
    except StoreError as error:
        return verified(False, 0, str(error))
    try:
        # A record's names are looked for among what is here: none leads to the network or to code.
        model = load_model(find_card(record.model.id), trust_pickle=request.trust_pickle)
        data = registered_name(record.dataset.name) if request.dataset is None else request.dataset
        request = replace(request, dataset=data, split=record.dataset.split, n=record.dataset.n)
        samples = load_samples(request, model.preprocessing)
    except RobenchError as error:
        return verified(True, 0, f"files intact; not judged again: {error}")
    try:
        judged, disagreements = reverify(stored, adversarial, model, samples, device=device)
    except RobenchError as error:
        return verified(False, 0, str(error))
    if not disagreements:
        return verified(True, judged, f"{judged} verdicts hold")
    first, what = next(iter(disagreements.items()))
    count = f"{len(disagreements)} of {judged}"
    return verified(False, judged, f"{count} verdicts differ, first {first}: {what}")


def registered_name(name: str) -> str:
    """The name of a data set in a record, if it is one that is registered here."""
    if name in DATASETS:
        return name
    raise unknown_name("data set", name, list(DATASETS))


def reverify(
    stored: StoredRecord,
    adversarial: Array | ArrayRows,
    model: RobenchModel,
    dataset: Dataset,
    *,
    device: torch.device,
    batch_size: int = 256,
) -> tuple[int, dict[str, str]]:
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

    Returns:
        How many samples' verdicts were looked at, and what differs, by sample id.

    Raises:
        UsageError: model or data are not those of the record.
        StoreError: as many adversarial inputs as samples are needed, and are not there.
    """
    check_sources(stored, adversarial, model, dataset)
    frame = stored.table
    indices = positions(dataset.sample_ids, frame["sample_id"])
    # Where an attack has nothing to show, the clean input is stored and there is no verdict on it.
    rows = torch.from_numpy(frame["adv_prediction"].notna().to_numpy().nonzero()[0])
    adv_inputs = KeptInputs(adversarial, rows.tolist())
    network: nn.Module = model.to(device)
    if any(flag.name == drawn_flag().name for flag in stored.record.flags):
        network = MostOfDraws(network, stored.record.seed)
    judge = Adjudicator(network, stored.record.threat_model, batch_size)
    disagreements: dict[str, str] = {}
    for part in torch.split(torch.arange(len(rows)), batch_size):
        picked = indices[rows[part]]
        verdicts = judge.judge(
            adv_inputs[part].to(device),
            dataset.batch(picked).to(device),
            dataset.labels[picked].to(device),
        )
        for place, row in enumerate(rows[part].tolist()):
            sample = stored.samples[row]
            broken, prediction = bool(verdicts.broken[place]), int(verdicts.prediction[place])
            if not verdicts.allowed[place]:
                disagreements[sample.sample_id] = "the input is outside the threat model"
            elif broken != (sample.outcome is Outcome.BROKEN):
                now = "misclassified" if broken else "classified correctly"
                disagreements[sample.sample_id] = f"recorded as {sample.outcome.value}, now {now}"
            elif prediction != sample.adv_prediction:
                disagreements[sample.sample_id] = (
                    f"recorded prediction {sample.adv_prediction}, now {prediction}"
                )
    return len(rows), disagreements


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
    check_samples(dataset, record.dataset)
    if len(adversarial) != len(samples):
        raise StoreError(
            f"{len(adversarial)} adversarial inputs for {len(samples)} samples", where=stored.path
        )


def check_samples(dataset: Dataset, used: DatasetSpec) -> None:
    """Refuse samples that are not those that a record was made with.

    Raises:
        UsageError: the fingerprints differ.
    """
    if dataset.fingerprint != used.fingerprint:
        raise UsageError(
            "the samples are not the ones that were used: the fingerprints differ", where=used.name
        )


def positions(names: Iterable[str], wanted: Iterable[str]) -> Tensor:
    """Where each of ``wanted`` is among ``names``, int64."""
    return torch.from_numpy(pd.Index(names).get_indexer(pd.Index(wanted)))


def predictions(column: pd.Series) -> Tensor:
    """A table's column of predictions, int64; −1 where there is none."""
    return torch.tensor(column.to_numpy(np.int64, na_value=-1))
