"""Pictures for a comparison: the differences, and samples that only one of two models resists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from robench.datasets import Dataset
from robench.inspection.shown_samples import samples_of
from robench.inspection.verification import positions, predictions
from robench.records import Outcome
from robench.reporting.compare import Comparison
from robench.reporting.model_results import ModelResult
from robench.reporting.plots.accuracies import difference_plot
from robench.reporting.plots.samples import resisted_by_one
from robench.reporting.plots.style import save
from robench.request import Request
from robench.results import Store, StoredRecord
from robench.results.arrays import Array, ArrayRows
from robench.text import file_name

Floats = npt.NDArray[np.floating[Any]]

_MOST = 8
"""Samples in one picture."""


def draw_comparison(
    comparison: Comparison,
    baseline: ModelResult,
    others: Sequence[ModelResult],
    store: Store,
    folder: Path,
    *,
    request: Request,
) -> tuple[list[Path], list[str]]:
    """Draw a comparison into a folder.

    Args:
        comparison: of ``baseline`` and ``others``, in this order.
        store: where adversarial inputs were kept (``--save-adversarial``).
        folder: where to.
        request: names the data set, if the user did, and where downloaded ones are.

    Returns:
        The files, and a sentence for each picture that could not be drawn.

    Raises:
        StoreError: a file cannot be written, or adversarial inputs are damaged.
        DataError, UnknownNameError: the samples cannot be read.
    """
    files: list[Path] = []
    notes: list[str] = []
    figure = difference_plot(comparison)
    if figure is not None:
        files += save(figure, folder / "differences")
    kept = _Kept(store)
    samples: Dataset | None = None
    for name, other in zip(comparison.only_other, others, strict=True):
        contests = (
            (comparison.baseline, baseline, name, other, comparison.only_baseline[name]),
            (name, other, comparison.baseline, baseline, comparison.only_other[name]),
        )
        for winner, resisting, loser, broken, ids in contests:
            if not ids:
                continue
            attack, shown = _deciding_attack(resisting, broken, ids, kept)
            if not shown:
                notes.append(
                    f"no picture of samples that only {winner} resists: no attack's adversarial "
                    "inputs are kept for both (run again with --save-adversarial)"
                )
                continue
            shown = shown[:_MOST]
            samples = samples or samples_of(broken.dataset, request)
            fought = resisting.attacks[attack], broken.attacks[attack]
            pair = [(of, positions(of.table["sample_id"], shown).tolist()) for of in fought]
            chosen = positions(samples.sample_ids, shown)
            drawn = resisted_by_one(
                (winner, loser),
                fought[1].record,
                shown,
                samples.labels[chosen].numpy(),
                _channels_last(samples.batch(chosen).numpy()),
                [_channels_last(kept.of(of, rows)) for of, rows in pair],
                [predictions(of.table["adv_prediction"].iloc[rows]).numpy() for of, rows in pair],
            )
            if drawn is not None:
                files += save(drawn, folder / file_name(f"resisted_by_{winner}_not_by_{loser}"))
    return files, notes


class _Kept:
    """Adversarial inputs by record, each file opened and checked once: they are large."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._opened: dict[str, ArrayRows] = {}

    def has(self, stored: StoredRecord) -> bool:
        """Whether the record's adversarial inputs were kept."""
        return stored.arrays_path is not None and self._store.has_adversarial(stored.record.key)

    def of(self, stored: StoredRecord, rows: list[int]) -> Array:
        """The given rows of the record's table, (k, C, H, W)."""
        key = stored.record.key
        if key not in self._opened:
            self._opened[key] = self._store.adversarial_rows(key)
        return self._opened[key][rows]


def _deciding_attack(
    resisting: ModelResult, broken: ModelResult, ids: Sequence[str], kept: _Kept
) -> tuple[str, list[str]]:
    """The attack that breaks most of ``ids``, and which; of those with inputs of both models."""
    best: tuple[str, list[str]] = "", []
    for attack in sorted(set(resisting.attacks) & set(broken.attacks)):
        fell = set(broken.sample_ids[broken.outcome_is(attack, Outcome.BROKEN)])
        shown = [sample for sample in ids if sample in fell]
        if len(shown) > len(best[1]) and all(
            kept.has(result.attacks[attack]) for result in (resisting, broken)
        ):
            best = attack, shown
    return best


def _channels_last(images: Floats) -> Floats:
    return np.moveaxis(images, 1, -1)
