"""Pictures of samples for the page, packed into few images: clean inputs, perturbations, attention maps.

Clean inputs are those that the results folder keeps (:mod:`robench.results.clean_samples`), else those of
records' panels. A perturbation is what a record keeps of the sample: of all samples where adversarial inputs
were kept, else of its panel's few. It is packed in 15 grey levels, from minus to plus the sample's largest
entry; pictures that would lose more than that, as JPEG does, would show what no attack made.
"""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from robench.errors import StoreError
from robench.records import Outcome
from robench.reporting.explorer.contents import result_id
from robench.reporting.explorer.packed import packed, size_of
from robench.reporting.model_results import ModelResult
from robench.results import SamplePanel, Store
from robench.results.clean_samples import CleanSamples, read_clean_samples
from robench.results.panels import read_panel

log = logging.getLogger("robench.reporting")

MOST = 5_000_000
"""Characters of all pictures in a page"""

_MOST_CLEAN = 2_000_000
"""Of these, of the clean inputs of all data sets"""

_LEVELS = 7
_WIDEST = 2048
"""Pixels of a packed image"""

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class _Shown:
    """The clean inputs of a data set by place among its sorted ids, and how they were thinned out."""

    images: Mapping[int, Bytes]
    stride: int


def explorer_pictures(
    results: Sequence[ModelResult], store: Store, *, most: int = MOST
) -> dict[str, Any]:
    """Plain data: ``clean`` by data set's fingerprint, and ``attacked`` by result's id and attack.

    No more than ``most`` characters: of what is more, the first samples of each are there.
    """
    panels = {
        (result_id(result), attack): panel
        for result in results
        for attack in result.attacks
        if (panel := _panel(result, attack, store)) is not None
    }
    clean: dict[str, Any] = {}
    shown: dict[str, _Shown] = {}
    left = min(most, _MOST_CLEAN)
    for result in results:
        if (data := result.group.fingerprint) in shown:
            continue
        own = [
            panels[found]
            for r in results
            if r.group.fingerprint == data
            for found in _keys(r, panels)
        ]
        shown[data] = _clean(result, own, store)
        if (fitting := _fitting(shown[data].images, left, _clean_sprite)) is not None:
            clean[data] = {**fitting, "stride": shown[data].stride}
            left -= size_of(fitting)
    attacked: dict[str, dict[str, Any]] = {}
    left = most - size_of(clean)
    jobs = list(_in_rounds(results))
    for done, (result, attack) in enumerate(jobs):
        panel = panels.get((result_id(result), attack))
        found = _attacked(result, attack, shown[result.group.fingerprint], panel, store)
        share = left // (len(jobs) - done)
        content = _fitting(found, share - 4 * size_of(_maps(result, panel)), _difference_sprite)
        content = (content or {}) | _maps(result, panel)
        if content and size_of(content) <= share:
            attacked.setdefault(result_id(result), {})[attack] = content
            left -= size_of(content)
    return {"clean": clean, "attacked": attacked}


def _keys(result: ModelResult, panels: Mapping[tuple[str, str], Any]) -> list[tuple[str, str]]:
    named = [(result_id(result), attack) for attack in result.attacks]
    return [key for key in named if key in panels]


def _places(result: ModelResult) -> dict[str, int]:
    return {name: place for place, name in enumerate(result.sample_ids.tolist())}


def _in_rounds(results: Sequence[ModelResult]) -> Iterator[tuple[ModelResult, str]]:
    """The attack that is reported of every model, then their others."""
    orders = []
    for result in results:
        reported, others = result.attention_attack, list(result.attacks)
        first = [] if reported is None else [reported]
        orders.append(list(dict.fromkeys([*first, *others])))
    for place in range(max(map(len, orders), default=0)):
        for result, order in zip(results, orders, strict=True):
            if place < len(order):
                yield result, order[place]


def _panel(result: ModelResult, attack: str, store: Store) -> SamplePanel | None:
    try:
        return read_panel(store, result.attacks[attack])
    except StoreError as error:
        log.warning("no pictures of a panel: %s", error)
        return None


def _clean(result: ModelResult, panels: Sequence[SamplePanel], store: Store) -> _Shown:
    places = _places(result)
    try:
        kept = read_clean_samples(store, result.group.fingerprint)
    except StoreError as error:
        log.warning("no pictures of clean samples: %s", error)
        kept = None
    parts = [] if kept is None else [kept]
    parts += [CleanSamples.of(p.sample_ids, np.moveaxis(p.clean, -1, 1)) for p in panels]
    images: dict[int, Bytes] = {}
    for part in parts:
        if part.images.shape[1:] == parts[0].images.shape[1:]:
            found = zip(part.sample_ids, part.images, strict=True)
            images = {places[n]: image for n, image in found if n in places} | images
    return _Shown(dict(sorted(images.items())), parts[0].stride if parts else 1)


def _attacked(
    result: ModelResult, attack: str, clean: _Shown, panel: SamplePanel | None, store: Store
) -> dict[int, npt.NDArray[np.float64]]:
    """Perturbations (h, w, C) by place: of the kept inputs, or the panel's."""
    stored = result.attacks[attack]
    places = _places(result)
    found: dict[int, npt.NDArray[np.float64]] = {}
    step = slice(None, None, clean.stride)
    if panel is not None:
        changes = panel.adversarial.astype(np.float64) - panel.clean
        found = {
            places[name]: change[step, step]
            for name, change in zip(panel.sample_ids, changes, strict=True)
            if name in places
        }
    try:
        if stored.arrays_path is None or not store.has_adversarial(stored.record.key):
            return found
        inputs = store.adversarial_rows(stored.record.key)
        judged = stored.table["outcome"].isin([Outcome.BROKEN, Outcome.SURVIVED])
        for row, name in enumerate(stored.table["sample_id"]):
            place = places.get(name, -1)
            if place in clean.images and judged.iloc[row] and place not in found:
                image = np.moveaxis(inputs[[row]][0], 0, -1)[step, step].astype(np.float64)
                found[place] = image - clean.images[place] / 255
    except StoreError as error:
        log.warning("no pictures of kept inputs: %s", error)
    return dict(sorted(found.items()))


def _fitting(images: Mapping[int, Any], most: int, pack: Any) -> dict[str, Any] | None:
    """The images packed, or as many of the first as fit; None: none does."""
    k = len(images)
    while k:
        places = list(images)[:k]
        content: dict[str, Any] = pack([images[place] for place in places])
        content["at"] = packed(np.array(places))
        if (size := size_of(content)) <= most:
            return content
        k = min(k - 1, max(0, k * most // size))
    return None


def _clean_sprite(images: Sequence[Bytes]) -> dict[str, Any]:
    return {"shape": list(images[0].shape), "sprite": _sprite(np.stack(images))}


def _difference_sprite(changes: Sequence[npt.NDArray[np.float64]]) -> dict[str, Any]:
    stacked = np.stack(changes)
    scales = np.abs(stacked).max(axis=(1, 2, 3))
    steps = _LEVELS * stacked / np.maximum(scales, 1e-12)[:, None, None, None]
    return {
        "shape": list(changes[0].shape),
        "scale": packed(scales),
        "sprite": _sprite((np.rint(steps) + _LEVELS).astype(np.uint8)),
    }


def _sprite(images: Bytes) -> str:
    """Images (k, h, w, C) in rows of one PNG."""
    from PIL import Image

    k, height, width, channels = images.shape
    columns = max(1, min(k, _WIDEST // width))
    rows = -(-k // columns)
    empty = np.zeros((rows * columns - k, height, width, channels), np.uint8)
    grid = np.concatenate([images, empty]).reshape(rows, columns, height, width, channels)
    grid = grid.swapaxes(1, 2).reshape(rows * height, columns * width, channels)
    stream = io.BytesIO()
    Image.fromarray(grid[..., 0] if channels == 1 else grid).save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _maps(result: ModelResult, panel: SamplePanel | None) -> dict[str, Any]:
    """Attention maps of a panel's samples, each as shares of its largest cell; zero: there is none."""
    if panel is None or not len(panel):
        return {}
    places = _places(result)
    chosen = [row for row, name in enumerate(panel.sample_ids) if name in places]
    scaled = []
    for maps in (panel.clean_maps[chosen], panel.adv_maps[chosen]):
        known = np.nan_to_num(maps.astype(np.float64), posinf=0.0, neginf=0.0)
        most = known.max(axis=(1, 2), keepdims=True, initial=0)
        scaled.append(np.rint(255 * known / np.maximum(most, 1e-30)).astype(np.uint8))
    return {
        "maps": {
            "at": packed(np.array([places[panel.sample_ids[row]] for row in chosen])),
            "shape": list(panel.clean_maps.shape[1:]),
            "clean": packed(scaled[0]),
            "adversarial": packed(scaled[1]),
        }
    }
