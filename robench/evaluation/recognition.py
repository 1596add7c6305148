"""Is a stored record this model's? Only if the model gives its outputs again.

A key holds all that can be seen to decide a model's outputs. What no hash sees, such as a value that
was put on a class of torch's, or a file that C++ reads, decides them too, and shows in them: so a
few of the stored samples are asked once more before a record, a snapshot or a bound answers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from robench import seeding
from robench.acceleration.search_models import SearchModel
from robench.attacks.losses import margin
from robench.datasets import Dataset
from robench.errors import StoreError
from robench.evaluation.prepared_model import PreparedModel
from robench.evaluation.queries import Queries
from robench.models.loading import make_unique
from robench.models.wrapper import RobenchModel
from robench.probes import FirstState, undisturbed
from robench.records import Flag
from robench.results.bounds import known_bounds
from robench.results.finds import UNREPEATABLE
from robench.results.parts import part_stores
from robench.results.store import Store
from robench.results.stored_record import StoredRecord
from robench.seeding import own_stream

log = logging.getLogger("robench.evaluation")

SAMPLES = 64
"""That are asked again, at most"""
_VALUES, _FEWEST = 2**21, 8  # of all their inputs; and so many samples at least
_OF_A_PART = 4
_LARGEST_FILE = 2**28  # bytes of adversarial inputs that are still read for it
_SAME = 1e-3  # by what share of a sample's largest logit machines and batches may differ
_ROUNDINGS = 8  # of a number in half precision, from the inputs to a logit
_NOISES = 16  # that another batch makes of a logit
_UNSTEADY = UNREPEATABLE | {"batch_dependent"}
_AGREED = 0.5  # margin of votes from which on one draw is likely to agree


@dataclass(frozen=True)
class Told:
    """What was stored of samples: int64 predictions (k,), -1 where none is told, and float64
    margins (k,), NaN where none is told."""

    predictions: Tensor
    margins: Tensor


@dataclass(frozen=True)
class Given:
    """What a model gives for inputs (k, C, H, W) in [0, 1] with int64 labels (k,), on the CPU."""

    model: RobenchModel
    inputs: Tensor
    labels: Tensor
    device: torch.device

    def _logits(self, batch_size: int) -> Tensor:
        queries = Queries(SearchModel(self.model), self.model.num_classes, batch_size)
        queries.reset(len(self.inputs), self.device)
        with own_stream(0, self.device), _as_given(self.model):
            return queries.logits(self.inputs.to(self.device)).cpu()

    @cached_property
    def logits(self) -> Tensor:
        """Float32 (k, K); NaN where the model fails."""
        return self._logits(SAMPLES)

    @cached_property
    def coarseness(self) -> float:
        """By what share of its largest logit an output may differ by rounding alone, as it is seen in
        other batches and in the types of the model's numbers."""
        again = self._logits(min(SAMPLES, len(self.inputs)) // 3 + 1)
        scale = self.logits.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
        apart = ((again - self.logits).abs().amax(dim=1) / scale).nan_to_num(0.0)
        types = {value.dtype for value in self.model.state_dict().values()}
        with torch.no_grad(), own_stream(0, self.device), _as_given(self.model):
            types |= {out.dtype for out in self._first()}
        eps = [torch.finfo(kind).eps for kind in types if kind.is_floating_point]
        return max(_SAME, _ROUNDINGS * max(eps, default=0.0), _NOISES * float(apart.max()))

    def _first(self) -> Iterator[Tensor]:
        try:
            yield self.model(self.inputs[:1].to(self.device))
        except Exception:  # Whatever a model may raise: its type is not known then.
            return

    def unlike(self, told: Told) -> Tensor:
        """bool (k,): samples whose outputs are not those that were told."""
        found = _unlike(self.logits, self.labels, told, _SAME)
        if bool(found.any()):
            found = _unlike(self.logits, self.labels, told, self.coarseness)
        return found

    def mostly_unlike(self, told: Told) -> Tensor:
        """The same of a model whose outputs do not repeat: all false while half of the predictions
        that most draws agreed on are given again."""
        sure = (told.predictions >= 0) & ~(told.margins.abs() < _AGREED)
        other = sure & (self.logits.argmax(dim=1) != told.predictions)
        return other & (2 * other.sum() > sure.sum())


@contextmanager
def _as_given(model: RobenchModel) -> Iterator[None]:
    """The model with what it kept before it was asked anything; afterwards it is as it is now."""
    now = FirstState.of(model.network)
    if now is not None and model.first is not None:
        model.first.restore(model.network)
    try:
        with undisturbed(model):
            yield
    finally:
        if now is not None:
            now.restore(model.network)


def _unlike(logits: Tensor, labels: Tensor, told: Told, share: float) -> Tensor:
    largest = logits.amax(dim=1)
    place = told.predictions.clamp(0, logits.shape[1] - 1).unsqueeze(1)
    room = 2 * share * logits.abs().amax(dim=1)
    # Where two classes are as likely, either may be the prediction. A NaN fails every comparison.
    same = logits.gather(1, place).squeeze(1) >= largest - room
    near = (margin(logits, labels) - told.margins).abs() <= room
    known = told.predictions >= 0
    return (known & ~same) | (~told.margins.isnan() & ~near)


def check_recognised(
    model: RobenchModel, dataset: Dataset, store: Store, device: torch.device
) -> None:
    """Hold a model against all that the store has of it on these samples.

    Where something stored is not what the model gives, it is another model's, whatever the key says:
    it stays where it is, one line says so, and the ``model`` has a key of its own from then on.
    Some 64 inputs pass, once more in other batches where they differ, and as many adversarial ones
    of each record that has them in a file of ordinary size. The model is moved to the device.
    """
    fingerprint = model.summary.fingerprint
    stores = (store, *part_stores(store))
    bounds = [item for item in known_bounds(store) if item.model.fingerprint == fingerprint]
    # The fingerprint of data takes reading it all.
    if not bounds and not any(place.keys_naming(fingerprint) for place in stores):
        return
    data = dataset.spec().fingerprint
    records = list(_records(stores, fingerprint, data))
    rows = _few(dataset, [stored for _, stored in records if stored.record.part is not None])
    ids = [dataset.sample_ids[row] for row in rows]
    clean = Given(model.to(device), dataset.batch(rows), dataset.labels[rows], device)
    for place, stored in records:
        steady = _is_steady(stored.record.flags)
        told = _told(stored, ids, "clean")
        found = clean.unlike(told) if steady else clean.mostly_unlike(told)
        what = "clean"
        if steady and not bool(found.any()) and (kept := _kept(place, stored, clean, ids)):
            found, what = kept[0].unlike(kept[1]), "adversarial"
        if bool(found.any()):
            of = f"record {stored.record.key[:12]} ({stored.record.attack.name})"
            _refuse(model, f"{what} samples", of, found)
            return
    for item in bounds:
        if item.dataset.fingerprint == data:
            margins = {sample.sample_id: sample.clean_margin for sample in item.samples}
            values = [math.nan if (m := margins.get(name)) is None else m for name in ids]
            told = Told(torch.full((len(ids),), -1), torch.tensor(values, dtype=torch.float64))
            if bool((found := clean.unlike(told)).any()):
                _refuse(model, "clean samples", f"bounds {item.key[:12]}", found)
                return


def told_margins(prepared: PreparedModel) -> Tensor:
    """Clean margins float64 (n,), NaN where the model failed: by these a snapshot is recognised."""
    margins = prepared.margins.double()
    margins[list(prepared.errors)] = math.nan
    return margins


def _is_steady(flags: Sequence[Flag]) -> bool:
    return _UNSTEADY.isdisjoint(flag.name for flag in flags)


def may_go_on(prepared: PreparedModel, margins: Tensor) -> bool:
    """Whether a snapshot with these margins is of the model; if not, one line says so."""
    if not _is_steady(prepared.flags):
        return True
    rows = _few(prepared.dataset)
    inputs, labels = prepared.dataset.batch(rows), prepared.dataset.labels[rows]
    given = Given(prepared.model, inputs, labels, prepared.settings.device)
    told = Told(torch.full((len(rows),), -1), margins[rows])
    count = int(given.unlike(told).sum())
    if count:
        log.warning(
            "%s begins anew: its outputs on %d of %d clean samples are not those of the stored "
            "snapshot, though nothing in its key differs",
            prepared.model.summary.id,
            count,
            len(rows),
        )
    return not count


def _few(dataset: Dataset, parts: Sequence[StoredRecord] = ()) -> list[int]:
    """Rows of samples from all over a data set, always the same ones; of each part some at least."""
    count = min(SAMPLES, max(_FEWEST, _VALUES // math.prod(dataset.input_shape)))
    order = seeding.sample_keys(0, dataset.sample_ids).argsort(stable=True).tolist()
    chosen = set(order[:count])
    for part in parts:
        own = set(part.table["sample_id"])
        chosen.update([row for row in order if dataset.sample_ids[row] in own][:_OF_A_PART])
    return sorted(chosen)


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


def _told(stored: StoredRecord, ids: list[str], kind: str) -> Told:
    """What a record tells of the clean inputs of samples, or of those of its attack (``adv``)."""
    table = stored.table.set_index("sample_id").reindex(ids)

    def column(name: str) -> Tensor:
        return torch.tensor(table[f"{kind}_{name}"].to_numpy(np.float64, na_value=np.nan))

    return Told(column("prediction").nan_to_num(-1).long(), column("margin"))


def _kept(
    store: Store, stored: StoredRecord, clean: Given, ids: list[str]
) -> tuple[Given, Told] | None:
    """The adversarial inputs of samples as the record has them; None: it has none to be read."""
    path = stored.arrays_path
    try:
        if path is None or path.stat().st_size > _LARGEST_FILE:
            return None
        if not store.has_adversarial(stored.record.key):
            return None
        places = {name: row for row, name in enumerate(stored.table["sample_id"])}
        if not (there := [i for i, name in enumerate(ids) if name in places]):
            return None
        kept = store.adversarial_rows(stored.record.key)[[places[ids[i]] for i in there]]
    except (OSError, StoreError):  # Whoever reads the record says so.
        return None
    told = _told(stored, [ids[i] for i in there], "adv")
    if stored.record.threat_model.targets is not None:  # whose margins are those of targets
        told = Told(told.predictions, torch.full_like(told.margins, math.nan))
    inputs = torch.from_numpy(np.ascontiguousarray(kept, np.float32))
    return Given(clean.model, inputs, clean.labels[there], clean.device), told


def _refuse(model: RobenchModel, samples: str, stored: str, unlike: Tensor) -> None:
    reason = (
        f"its outputs on {int(unlike.sum())} of {len(unlike)} {samples} are not those of the stored "
        f"{stored}, though nothing in its key differs"
    )
    log.warning("%s is evaluated again: %s", model.summary.id, reason)
    make_unique(model, [reason])
