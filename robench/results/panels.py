"""A few samples kept whole, to be shown: images and attention maps, clean and adversarial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from robench.errors import CorruptRecordError, StoreError

if TYPE_CHECKING:
    from robench.results.store import Store
    from robench.results.stored_record import StoredRecord

_PREFIX = "panel_"
_AXES = {
    "clean": 4,
    "adversarial": 4,
    "clean_maps": 3,
    "adv_maps": 3,
    "labels": 1,
    "clean_predictions": 1,
    "adv_predictions": 1,
}

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class SamplePanel:
    """k samples with everything that a picture of them needs.

    Args:
        sample_ids: k names.
        clean, adversarial: images (k, H, W, C) in [0, 1], C 1 or 3.
        clean_maps, adv_maps: attention maps (k, h, w) ≥ 0 for the true class, NaN where there
            is none.
        labels, clean_predictions, adv_predictions: classes (k,); −1 where unknown.
    """

    sample_ids: tuple[str, ...]
    clean: Floats
    adversarial: Floats
    clean_maps: Floats
    adv_maps: Floats
    labels: Integers
    clean_predictions: Integers
    adv_predictions: Integers

    def __post_init__(self) -> None:
        k = len(self.sample_ids)
        for name, axes in _AXES.items():
            array = getattr(self, name)
            if array.ndim != axes or len(array) != k:
                raise StoreError(
                    f"panel array {name!r} has shape {array.shape} for {k} samples",
                    hint=f"It must have {axes} axes, the first of length {k}",
                )
        if self.clean.shape != self.adversarial.shape or self.clean.shape[-1] not in (1, 3):
            raise StoreError(
                f"panel images have shapes {self.clean.shape} and {self.adversarial.shape}",
                hint="Both must be (k, H, W, C) with 1 or 3 channels",
            )

    def __len__(self) -> int:
        return len(self.sample_ids)

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Named arrays for :meth:`robench.results.Store.write`."""
        arrays = {f"{_PREFIX}{name}": getattr(self, name) for name in _AXES}
        return {**arrays, f"{_PREFIX}sample_ids": np.array(self.sample_ids, dtype=np.str_)}

    @classmethod
    def joined(cls, panels: Sequence[SamplePanel], sample_ids: Sequence[str]) -> SamplePanel:
        """Of the samples of several panels, of one shape, those of some ids, in their order."""
        names = [name for panel in panels for name in panel.sample_ids]
        order = [names.index(name) for name in sample_ids]
        together = {
            name: np.concatenate([getattr(panel, name) for panel in panels])[order]
            for name in _AXES
        }
        return cls(tuple(sample_ids), **together)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> SamplePanel | None:
        """The panel among a record's arrays; None if it has none.

        Raises:
            StoreError: parts of it are missing or of the wrong shape.
        """
        if not any(name.startswith(_PREFIX) for name in arrays):
            return None
        try:
            names = tuple(str(name) for name in arrays[f"{_PREFIX}sample_ids"])
            return cls(names, **{name: arrays[f"{_PREFIX}{name}"] for name in _AXES})
        except KeyError as error:
            raise StoreError(f"the record's panel lacks {error}") from error


def read_panel(store: Store, stored: StoredRecord) -> SamplePanel | None:
    """The panel that was kept with a record; None if none was.

    Raises:
        StoreError: it cannot be read.
        CorruptRecordError: it is damaged, or its labels are not those of the record's table.
    """
    if stored.arrays_path is None:
        return None
    panel = SamplePanel.from_arrays(store.read_arrays(stored.record.key))
    if panel is not None:
        rows = stored.table.set_index("sample_id").reindex(panel.sample_ids)
        labels = rows["label"].to_numpy(dtype="float64", na_value=float("nan"))
        if not (labels == panel.labels).all():
            raise CorruptRecordError("the panel's samples are not the table's")
    return panel
