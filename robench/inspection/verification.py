"""Are the records of a results folder sound, and do their verdicts still hold?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from robench.datasets import DATASETS, Dataset
from robench.datasets.base import Subset
from robench.devices import resolve_device
from robench.errors import RobenchError, StoreError, UsageError
from robench.evaluation.adjudicate import Adjudicator
from robench.evaluation.adversarial_inputs import KeptInputs
from robench.evaluation.parts import part_rows
from robench.evaluation.randomised import adjudicator_of, is_judged_by_draws
from robench.inspection.eight_bits import in_eight_bits
from robench.models.loading import load_model
from robench.models.wrapper import RobenchModel
from robench.models.zoo import find_card
from robench.records import DatasetSpec, Outcome, SampleOutcome
from robench.registry import unknown_name
from robench.request import Part, Request
from robench.request_loading import load_samples
from robench.results import Store, StoredRecord
from robench.results.arrays import Array, ArrayRows
from robench.results.parts import part_stores
from robench.results.validations import Validations, read_validation

_VALIDATION = "(validation)"
"""Where a record has the name of its attack"""


@dataclass(frozen=True)
class Verified:
    """What was found about one record, or one validation."""

    key: str
    model: str
    attack: str
    sound: bool
    """Nothing speaks against it."""
    judged: int
    """Samples whose adversarial inputs were judged again."""
    finding: str
    finds_in_8_bits: int | None = None
    """Finds that survive rounding to 256 grey levels; None: not judged again, or in vain"""


def verify_store(store: Store, request: Request) -> list[Verified]:
    """Check every record's files, those of parts too, and judge again what adversarial inputs are kept;
    then hold every validation against the records that it is made of.

    Args:
        store: the results folder.
        request: where to judge, whether to trust what weights files carry, and where the samples
            are: ``dataset`` only if the records' name for them does not say.

    Raises:
        DeviceError: there is no such device.
    """
    device = resolve_device(request.device)
    found = []
    for home in (store, *part_stores(store)):
        scan = home.scan()
        found += [Verified(p.key, "", "", False, 0, str(p.error)) for p in scan.problems]
        found += [_verify(home, stored, request, device) for stored in scan.records]
    validations = Validations(store)
    return found + [_verify_validation(validations, path) for path in validations.paths()]


def _verify_validation(validations: Validations, path: Path) -> Verified:
    model = ""
    try:
        validation = read_validation(path)
        model = validation.model.id
        validations.check(validation, path)
    except StoreError as error:
        return Verified(path.stem, model, _VALIDATION, False, 0, str(error))
    count = len({*validation.base, *(trial.key for trial in validation.trials if trial.key)})
    told = f"{validation.verdict}: agrees with its {count} records"
    return Verified(path.stem, model, _VALIDATION, True, 0, told)


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
        model, samples = sources_of(stored, request)
    except RobenchError as error:
        return verified(True, 0, f"files intact; not judged again: {error}")
    try:
        judged, disagreements = reverify(stored, adversarial, model, samples, device=device)
        saved = finds_in_8_bits(stored, adversarial, model, samples, device=device)
    except RobenchError as error:
        return verified(False, 0, str(error))
    if not disagreements:
        finds = record.count(Outcome.BROKEN)
        held = f"{judged} verdicts hold; {saved} of {finds} finds survive rounding to 8 bits"
        return verified(True, judged, held, finds_in_8_bits=saved)
    first, what = next(iter(disagreements.items()))
    count = f"{len(disagreements)} of {judged}"
    return verified(False, judged, f"{count} verdicts differ, first {first}: {what}")


def sources_of(stored: StoredRecord, request: Request) -> tuple[RobenchModel, Dataset]:
    """The model and the samples of a record, by the names that it gives them.

    They are looked for among what is here: no name of a record leads to the network or to code.
    ``request`` is as for :func:`verify_store`.

    Raises:
        RobenchError: they are not here, or cannot be loaded.
    """
    part = stored.record.part
    used = stored.record.dataset if part is None else part.dataset
    model = load_model(find_card(stored.record.model.id), trust_pickle=request.trust_pickle)
    data = registered_name(used.name) if request.dataset is None else request.dataset
    request = replace(request, dataset=data, split=used.split, n=used.n)
    samples = load_samples(request, model.preprocessing)
    if part is None:
        return model, samples
    chosen = part_rows(samples.sample_ids, Part(part.index, part.count))
    return model, Subset(samples, chosen)


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

    A broken sample's input must be inside the threat model and misclassified, or be its target, a
    survivor's must not; both must get the prediction that was recorded. A survivor's stored input is the attack's
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
    judge = judge_of(stored, model.to(device), dataset.input_shape, batch_size)
    targeted = stored.record.threat_model.targets is not None
    disagreements: dict[str, str] = {}
    judged = 0
    for part in kept_parts(stored, adversarial, dataset, device, batch_size):
        verdicts = judge.judge(part.points, part.inputs, part.classes)
        judged += len(part.samples)
        for place, sample in enumerate(part.samples):
            broken, prediction = bool(verdicts.broken[place]), int(verdicts.prediction[place])
            if not verdicts.allowed[place]:
                disagreements[sample.sample_id] = "the input is outside the threat model"
            elif broken != (sample.outcome is Outcome.BROKEN):
                now = "misclassified" if broken else "classified correctly"
                if targeted:
                    now = "at its target" if broken else "not at its target"
                disagreements[sample.sample_id] = f"recorded as {sample.outcome.value}, now {now}"
            elif prediction != sample.adv_prediction:
                disagreements[sample.sample_id] = (
                    f"recorded prediction {sample.adv_prediction}, now {prediction}"
                )
    return judged, disagreements


def finds_in_8_bits(
    stored: StoredRecord,
    adversarial: Array | ArrayRows,
    model: RobenchModel,
    dataset: Dataset,
    *,
    device: torch.device,
    batch_size: int = 256,
) -> int:
    """How many of a record's finds are finds still, once they are rounded to 256 grey levels; the
    arguments are those of :func:`reverify`, which has approved of them."""
    judge = judge_of(stored, model.to(device), dataset.input_shape, batch_size)
    return sum(
        int(in_eight_bits(part.points, part.inputs, part.classes, judge)[1].broken.sum())
        for part in kept_parts(stored, adversarial, dataset, device, batch_size, Outcome.BROKEN)
    )


def judge_of(
    stored: StoredRecord, model: RobenchModel, shape: Sequence[int], batch_size: int
) -> Adjudicator:
    """Who judged a record, with its model, on inputs of a ``shape`` (C, H, W)."""
    record = stored.record
    if is_judged_by_draws(record.flags):
        about = record.repeated_draws, record.seed, record.threat_model
        return adjudicator_of(model, shape, *about, batch_size)
    return Adjudicator(model, record.threat_model, batch_size)


class KeptPart(NamedTuple):
    """Some of a record's samples that have an adversarial input, in the table's order."""

    samples: Sequence[SampleOutcome]
    points: Tensor
    """(k, C, H, W) in [0, 1]"""
    inputs: Tensor
    """The clean ones"""
    classes: Tensor
    """int64 (k,): their labels, or the targets of a record that has any"""


def kept_parts(
    stored: StoredRecord,
    adversarial: Array | ArrayRows,
    dataset: Dataset,
    device: torch.device,
    batch_size: int,
    only: Outcome | None = None,
) -> Iterator[KeptPart]:
    """A record's adversarial inputs on the device, ``only`` of samples with an outcome, or all.

    Where an attack has nothing to show, the clean input is stored: there is no verdict on it.
    """
    frame = stored.table
    indices = positions(dataset.sample_ids, frame["sample_id"])
    wanted = frame["adv_prediction"].notna()
    if only is not None:
        wanted &= frame["outcome"] == only.value
    rows = torch.from_numpy(wanted.to_numpy().nonzero()[0])
    classes = dataset.labels[indices]
    if stored.record.threat_model.targets is not None:
        classes = predictions(frame.get("target", frame["label"]))
    adv_inputs = KeptInputs(adversarial, rows.tolist())
    for part in torch.split(torch.arange(len(rows)), batch_size):
        picked = indices[rows[part]]
        yield KeptPart(
            stored.rows.at(rows[part].tolist()),
            adv_inputs[part].to(device),
            dataset.batch(picked).to(device),
            classes[rows[part]].to(device),
        )


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
    record, count = stored.record, len(stored.arrow)
    if model.summary.fingerprint != record.model.fingerprint:
        raise UsageError(
            "the model is not the one that was evaluated: weights or card differ",
            where=record.model.id,
        )
    check_samples(dataset, record.dataset)
    if len(adversarial) != count:
        raise StoreError(
            f"{len(adversarial)} adversarial inputs for {count} samples", where=stored.path
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
