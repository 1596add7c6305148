"""Adversarial inputs as pictures of 8 bits, with what the model says of each picture."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from robench.datasets import Dataset
from robench.devices import resolve_device, single_precision
from robench.errors import StoreError, UsageError
from robench.files import atomic_write, ensure_writable
from robench.inspection.eight_bits import in_eight_bits
from robench.inspection.verification import check_sources, judge_of, kept_parts, sources_of
from robench.models.wrapper import RobenchModel
from robench.reporting.export import csv_bytes
from robench.request import Request
from robench.results import Store, StoredRecord
from robench.text import file_name

INDEX = "index.csv"

_COLUMNS = [
    "sample_id",
    "file",
    "label",
    "outcome",
    "clean_prediction",
    "adv_prediction",
    "is_find",
]


def export_pngs(
    store: Store, records: Iterable[StoredRecord], folder: Path, request: Request
) -> list[Path]:
    """Write the adversarial inputs of every record that kept them, a folder each.

    Args:
        store: the records' folder.
        records: those that are wanted.
        folder: gets a folder for each record, named after model, attack and key.
        request: where models and samples are, as for
            :func:`robench.inspection.verification.verify_store`.

    Returns:
        The indexes, one a record.

    Raises:
        StoreError: no record kept its inputs, or the folder cannot be written.
        RobenchError: as :func:`write_pngs`; a model or samples that are not here. They are looked
            for before anything is written.
    """
    ensure_writable(folder, "--out")
    kept = [stored for stored in records if store.has_adversarial(stored.record.key)]
    if not kept:
        raise StoreError(
            "no record that is wanted has adversarial inputs",
            where=store.folder,
            hint="Run it again with --save-adversarial",
        )
    device = resolve_device(request.device)
    sources: dict[str, tuple[RobenchModel, Dataset]] = {}
    for stored in kept:
        if _about(stored) not in sources:
            sources[_about(stored)] = model, dataset = sources_of(stored, request)
            _mode(model.summary.id, dataset.input_shape[0])
    written = []
    for stored in kept:
        record, (model, dataset) = stored.record, sources[_about(stored)]
        name = file_name(f"{record.model.name}-{record.attack.name}")
        place = folder / f"{name}-{record.key[:12]}"
        written.append(write_pngs(store, stored, model.to(device), dataset, place, device))
    return written


def _about(stored: StoredRecord) -> str:
    return f"{stored.record.model.id} {stored.record.dataset.fingerprint}"


@single_precision()
def write_pngs(
    store: Store,
    stored: StoredRecord,
    model: RobenchModel,
    dataset: Dataset,
    folder: Path,
    device: torch.device,
) -> Path:
    """Write the adversarial inputs of one record as PNGs, and an index of them.

    They are rounded as :func:`robench.inspection.eight_bits.in_eight_bits` does. The index says of
    each the sample's id, its file, label, outcome in the record and clean prediction; the prediction
    for the rounded picture, and whether that is a find.

    Raises:
        UsageError: the inputs are no pictures; model or data are not those of the record.
        StoreError: the inputs were not kept, or the folder cannot be written.
    """
    adversarial = store.adversarial_rows(stored.record.key)
    check_sources(stored, adversarial, model, dataset)
    mode = _mode(stored.record.model.id, dataset.input_shape[0])
    judge = judge_of(stored, model, dataset.input_shape, batch_size=256)
    names = picture_names(list(stored.table["sample_id"]))
    rows = []
    for part in kept_parts(stored, adversarial, dataset, device, batch_size=256):
        pictures, verdicts = in_eight_bits(part.points, part.inputs, part.classes, judge)
        for place, sample in enumerate(part.samples):
            name = names[sample.sample_id]
            atomic_write(folder / name, png_bytes(pictures[place], mode))
            about = (sample.sample_id, name, sample.label, sample.outcome.value)
            now = int(verdicts.prediction[place]), bool(verdicts.broken[place])
            rows.append((*about, sample.clean_prediction, *now))
    index = folder / INDEX
    atomic_write(index, csv_bytes(pd.DataFrame(rows, columns=_COLUMNS)))
    return index


def picture_names(sample_ids: Sequence[str]) -> dict[str, str]:
    """Id → the name of its file, which leads nowhere and is nobody else's, whatever the case.

    >>> picture_names(["digits/7", "../../7"])
    {'digits/7': 'digits_7.png', '../../7': '__.._7.png'}
    """
    plain = {name: file_name(name) for name in sample_ids}
    times = Counter(name.casefold() for name in plain.values())

    def own(sample_id: str, name: str) -> str:
        if times[name.casefold()] == 1:
            return f"{name}.png"
        return f"{name}-{hashlib.sha256(sample_id.encode(errors='replace')).hexdigest()[:12]}.png"

    return {sample_id: own(sample_id, name) for sample_id, name in plain.items()}


def png_bytes(picture: Tensor, mode: str) -> bytes:
    """A picture (C, H, W) of multiples of 1/255 as a PNG in mode L or RGB."""
    levels = (picture.cpu() * 255).round().to(torch.uint8).movedim(0, -1).numpy()
    stream = io.BytesIO()
    Image.fromarray(levels[:, :, 0] if mode == "L" else levels).save(stream, format="PNG")
    return stream.getvalue()


def _mode(where: str, channels: int) -> str:
    modes = {1: "L", 3: "RGB"}
    if channels not in modes:
        raise UsageError(f"inputs of {channels} channels are no pictures", where=where)
    return modes[channels]
