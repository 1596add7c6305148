"""Is a stored record this model's? Only if the model gives its outputs and its slopes again.

A key holds all that can be seen to decide a model's outputs and gradients. What no hash sees, such as a
value that was put on a class of torch's, or a file that C++ reads, decides them too, and shows in them:
so a few of the stored samples are asked once more before a record, a snapshot or a bound answers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robench.datasets import Dataset
from robench.errors import StoreError
from robench.evaluation.given import Given, few_rows
from robench.evaluation.prepared_model import PreparedModel
from robench.models.loading import make_unique
from robench.models.wrapper import RobenchModel
from robench.records import Flag, Slopes
from robench.results.bounds import known_bounds
from robench.results.finds import UNREPEATABLE
from robench.results.parts import part_stores
from robench.results.store import Store
from robench.results.stored_record import StoredRecord

log = logging.getLogger("robench.evaluation")

_LARGEST_FILE = 2**28  # bytes of adversarial inputs that are still read for it
_UNSTEADY = UNREPEATABLE | {"batch_dependent"}
_AGREED = 0.5  # margin of votes from which on one draw is likely to agree


@dataclass(frozen=True)
class Told:
    """What was stored of samples: int64 predictions (k,), -1 where none is told, and float64
    margins (k,), NaN where none is told."""

    predictions: Tensor
    margins: Tensor

    @classmethod
    def of_margins(cls, margins: Tensor) -> Told:
        """Of margins (k,) alone."""
        return cls(torch.full((len(margins),), -1), margins.double())


@dataclass(frozen=True)
class _Unlike:
    """Samples, bool (k,), for which a model does not give what is stored, and what it does not."""

    samples: Tensor
    what: str
    kind: str = "clean"

    def __bool__(self) -> bool:
        return bool(self.samples.any())

    def __str__(self) -> str:
        count = f"{int(self.samples.sum())} of {len(self.samples)}"
        return f"{self.what} {count} {self.kind} samples"


def _outputs(given: Given, told: Told, kind: str, steady: bool = True) -> _Unlike:
    """Of a model whose outputs do not repeat: none, while half of the predictions that most draws
    agreed on are given again."""
    if steady:
        found = given.unlike(told.predictions, told.margins)
    else:
        sure = (told.predictions >= 0) & ~(told.margins.abs() < _AGREED)
        found = _if_most(sure & (given.logits.argmax(dim=1) != told.predictions), sure)
    return _Unlike(found, "its outputs on", kind)


def _slopes(given: Given, told: Slopes, steady: bool = True) -> _Unlike:
    """The same of gradients."""
    known, found = given.rising_unlike(told)
    steep = found[:, [i for i, name in enumerate(Slopes.columns()) if "margin" not in name]]
    what = "its gradients on" if bool(steep.any()) else "its outputs beside"
    if not steady:
        return _Unlike(_if_most(steep.any(dim=1), known.any(dim=1)), what)
    return _Unlike(found.any(dim=1), what)


def _if_most(found: Tensor, of: Tensor) -> Tensor:
    return found & (2 * found.sum() > of.sum())


def check_recognised(
    model: RobenchModel, dataset: Dataset, store: Store, device: torch.device
) -> None:
    """Hold a model against all that the store has of it on these samples.

    Where something stored is not what the model gives, it is another model's, whatever the key says:
    it stays where it is, one line says so, and the ``model`` has a key of its own from then on.
    Some 64 inputs pass, and pass with gradients, they and inputs beside them, once more in other batches
    where they differ; so do as many adversarial ones of each record that has them in a file of ordinary
    size. One line says how many records are older than slopes. The model is moved to the device.
    """
    fingerprint = model.summary.fingerprint
    stores = (store, *part_stores(store))
    bounds = [item for item in known_bounds(store) if item.model.fingerprint == fingerprint]
    # The fingerprint of data takes reading it all.
    if not bounds and not any(place.keys_naming(fingerprint) for place in stores):
        return
    data = dataset.spec().fingerprint
    records = list(_records(stores, fingerprint, data))
    parts = [list(s.table["sample_id"]) for _, s in records if s.record.part is not None]
    clean = Given.of(model.to(device), dataset, few_rows(dataset, parts), device)
    for place, stored in records:
        if found := _of_another(place, stored, clean):
            _refuse(model, found, f"record {stored.record.key[:12]} ({stored.record.attack.name})")
            return
    for item in bounds:
        if item.dataset.fingerprint == data:
            margins = {sample.sample_id: sample.clean_margin for sample in item.samples}
            values = [math.nan if (m := margins.get(name)) is None else m for name in clean.ids]
            if found := _outputs(clean, Told.of_margins(torch.tensor(values)), "clean"):
                _refuse(model, found, f"bounds {item.key[:12]}")
                return
    if older := sum(stored.record.slopes is None for _, stored in records):
        log.warning(
            "%s: %d stored records are older than the slopes by which a model is recognised, and "
            "answer for nothing; their jobs are done again where they are asked for",
            model.summary.id,
            older,
        )


def _of_another(store: Store, stored: StoredRecord, clean: Given) -> _Unlike | None:
    """What of a record is not what the model gives, if anything."""
    steady = _is_steady(stored.record.flags)
    found = _outputs(clean, _told(stored, clean.ids, "clean"), "clean", steady)
    if not found and stored.record.slopes is not None:
        found = _slopes(clean, stored.record.slopes, steady)
    if not found and steady and (kept := _kept(store, stored, clean)):
        found = _outputs(*kept, "adversarial")
    return found or None


def told_margins(prepared: PreparedModel) -> Tensor:
    """Clean margins float64 (n,), NaN where the model failed: by these a snapshot is recognised."""
    margins = prepared.margins.double()
    margins[list(prepared.errors)] = math.nan
    return margins


def _is_steady(flags: Sequence[Flag]) -> bool:
    return _UNSTEADY.isdisjoint(flag.name for flag in flags)


def may_go_on(prepared: PreparedModel, margins: Tensor, slopes: Slopes) -> bool:
    """Whether a snapshot with these margins and slopes is of the model; if not, one line says so."""
    steady, given = _is_steady(prepared.flags), prepared.given
    found = None
    if steady:
        rows = few_rows(prepared.dataset)
        found = _outputs(given, Told.of_margins(margins[rows]), "clean")
    found = found or _slopes(given, slopes, steady)
    if found:
        log.warning(
            "%s begins anew: %s are not those of the stored snapshot, though nothing in its key "
            "differs",
            prepared.model.summary.id,
            found,
        )
    return not found


def _records(
    stores: Sequence[Store], model: str, data: str
) -> Iterator[tuple[Store, StoredRecord]]:
    """The sound ones of a model and data, by fingerprints; of others those hear who ask for them."""
    for store in stores:
        for key in store.keys_naming(model, data):
            try:
                stored = store.read(key)
            except StoreError:
                continue
            record = stored.record
            whole = record.dataset if record.part is None else record.part.dataset
            if (record.model.fingerprint, whole.fingerprint) == (model, data):
                yield store, stored


def _told(stored: StoredRecord, ids: Sequence[str], kind: str) -> Told:
    """What a record tells of the clean inputs of samples, or of those of its attack (``adv``)."""
    table = stored.table.set_index("sample_id").reindex(list(ids))

    def column(name: str) -> Tensor:
        return torch.tensor(table[f"{kind}_{name}"].to_numpy(np.float64, na_value=np.nan))

    return Told(column("prediction").nan_to_num(-1).long(), column("margin"))


def _kept(store: Store, stored: StoredRecord, clean: Given) -> tuple[Given, Told] | None:
    """The adversarial inputs of samples as the record has them; None: it has none to be read."""
    path = stored.arrays_path
    try:
        if path is None or path.stat().st_size > _LARGEST_FILE:
            return None
        if not store.has_adversarial(stored.record.key):
            return None
        places = {name: row for row, name in enumerate(stored.table["sample_id"])}
        if not (there := [i for i, name in enumerate(clean.ids) if name in places]):
            return None
        ids = [clean.ids[i] for i in there]
        kept = store.adversarial_rows(stored.record.key)[[places[name] for name in ids]]
    except (OSError, StoreError):  # Whoever reads the record says so.
        return None
    told = _told(stored, ids, "adv")
    if stored.record.threat_model.targets is not None:  # whose margins are those of targets
        told = Told(told.predictions, torch.full_like(told.margins, math.nan))
    inputs = torch.from_numpy(np.ascontiguousarray(kept, np.float32))
    return Given(clean.model, inputs, clean.labels[there], ids, clean.device), told


def _refuse(model: RobenchModel, found: _Unlike, stored: str) -> None:
    reason = f"{found} are not those of the stored {stored}, though nothing in its key differs"
    log.warning("%s is evaluated again: %s", model.summary.id, reason)
    make_unique(model, [reason])
