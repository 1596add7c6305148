"""Data sets of the Hugging Face Hub, through its own package.

The package keeps them as Arrow files in its cache and maps them into memory: only the images
that are asked for are read and decoded. It executes no code of a repository since its version 4.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from robench.datasets.base import ImageByImage
from robench.datasets.labels import class_labels
from robench.datasets.preprocessing import Preprocessing, to_pixels
from robench.errors import (
    DataError,
    MissingDependencyError,
    UnknownNameError,
    UsageError,
    data_errors,
    one_line,
)

_ADDRESS = re.compile(r"(?P<repo>[\w-][\w.-]*(?:/[\w-][\w.-]*)?)(?:@(?P<revision>[\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LABELS = ("label", "labels", "fine_label", "target", "class", "y")
_IMAGES = ("image", "img", "pixel_values", "x")


class HuggingFaceDataset(ImageByImage):
    """Rows of a map-style ``datasets.Dataset``, read as they are asked for.

    Args:
        rows: has ``features``, ``__len__``, and ``__getitem__`` by row and by column.
        image, label: columns; None: found by type, then by name.
        preprocessing: of images; arrays are taken as they are.
        num_classes: where the labels have no names; None: the largest label + 1.
        class_names: one a class; None: those of the column's type.

    Raises:
        UsageError: there is no such column, or several could be meant.
        DataError: no rows, labels that are unknown, or items that are no images.
    """

    reads_alike = True

    def __init__(
        self,
        rows: Any,
        *,
        name: str,
        split: str,
        image: str | None = None,
        label: str | None = None,
        preprocessing: Preprocessing | None = None,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        where = f"{name} ({split})"
        if len(rows) == 0:
            raise DataError("the data set is empty", where=where)
        features: Mapping[str, Any] = rows.features
        images = _column(features, image, "image", "Image", _IMAGES, where)
        labels = _column(features, label, "label", "ClassLabel", _LABELS, where)
        # Reading a row would decode all of its columns.
        self._rows = rows.select_columns([images])
        self._column = images
        self._preparation = preprocessing or Preprocessing()
        self._element = _element(features[images])
        self._where = where
        given = class_names if class_names is not None else getattr(features[labels], "names", None)
        values, names = _labels(rows[labels], given, num_classes, where)
        super().__init__(
            name=name,
            split=split,
            sample_ids=[f"{name}/{split}/{i:06d}" for i in range(len(rows))],
            labels=values,
            class_names=names,
            preprocessing=self._preparation.spec,
            white=self._preparation.white,
        )

    def _image(self, index: int) -> Tensor:
        with data_errors(self._place(index)):
            item = self._rows[index][self._column]
        place, white = self._place(index), self._preparation.white
        if not isinstance(item, Image.Image):
            if isinstance(item, list) and self._element in ("bool", "uint8", "uint16"):
                item = np.asarray(item, dtype=self._element)
            elif isinstance(item, list) and np.asarray(item).dtype.kind in "iu":
                white = white or 255  # as the package stores bytes that nobody declared
            return to_pixels(item, where=place, white=white)
        try:
            return self._preparation.image(item)
        except DataError as error:
            raise DataError(error.what, where=place, hint=error.hint) from error

    def _place(self, index: int) -> str:
        return f"{self._where} row {index}"


def load_hugging_face(
    address: str,
    *,
    split: str = "test",
    root: Path | None = None,
    config: str | None = None,
    image: str | None = None,
    label: str | None = None,
    num_classes: int | None = None,
    **preparation: Any,
) -> HuggingFaceDataset:
    """``OWNER/NAME`` or ``OWNER/NAME@REVISION`` → the data set, fetched if it is not in the cache.

    Args:
        address: the repository; name a revision to pin the data.
        split: as the repository names it.
        root: the package's cache folder; None: its own.
        config: one of several configurations.
        image, label: columns, where they cannot be found.
        num_classes: where the labels are plain numbers.
        preparation: as for :meth:`Preprocessing.of`.

    Raises:
        MissingDependencyError: ``datasets`` is not installed.
        UsageError: the address has another form, or a wrong option.
        UnknownNameError: no such split.
        DataError: no such repository or configuration; no connection; no labels; what the package
            would read, or has read, lies elsewhere or is of another commit.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise UsageError(
            f"{address!r} is not a repository of the Hub", hint="Write it as hf:OWNER/NAME@REVISION"
        )
    if os.path.exists(match["repo"]):
        raise DataError(
            "the working folder holds something of this name, which the package would read in place "
            "of the Hub's data set",
            where=f"hf:{address}",
            hint=f"Run robench in another folder; or, if it is what you mean, folder:{match['repo']}",
        )
    preprocessing = Preprocessing.of(**preparation)
    try:
        # Optional package, needed for this source only.
        from datasets import load_dataset
    except ImportError as error:
        raise MissingDependencyError(
            "datasets is not installed",
            where=f"hf:{address}",
            hint="pip install robench[hf-datasets]",
        ) from error
    try:
        rows = load_dataset(
            match["repo"],
            config,
            split=split,
            revision=match["revision"],
            cache_dir=None if root is None else str(root),
        )
    except Exception as error:  # The package raises errors of several HTTP and file libraries.
        if isinstance(error, ValueError) and "Unknown split" in str(error):
            raise UnknownNameError(one_line(error), where=f"hf:{address}") from error
        raise DataError(
            f"cannot be loaded: {one_line(error)}",
            where=f"hf:{address}",
            hint="Check the name, --split, --data-option config=NAME, and the network",
        ) from error
    with data_errors(f"hf:{address}"):
        _check_origin(rows, match["revision"], f"hf:{address}")
        return HuggingFaceDataset(
            rows,
            name=match["repo"].replace("/", "_"),
            split=split,
            image=image,
            label=label,
            preprocessing=preprocessing,
            num_classes=num_classes,
        )


def _check_origin(rows: Any, revision: str | None, where: str) -> None:
    """Refuse rows that are not of the Hub, or of another commit than the one that is named.

    The package also has readers by name (``imagefolder``), which read the working folder, and without a
    connection it takes whatever commit is in its cache.
    """
    files = list(getattr(getattr(rows, "info", None), "download_checksums", None) or ())
    here = [str(file) for file in files if "://" not in str(file)]
    if here:
        raise DataError(
            f"is no data set of the Hub: the package read {here[0]}",
            where=where,
            hint="Write the path of a folder or file as it is, without hf:",
        )
    other = [str(file) for file in files if revision not in str(file)] if revision else []
    if other and _COMMIT.fullmatch(str(revision)):
        raise DataError(
            f"the package's cache has another commit: {other[0]}",
            where=where,
            hint="Connect to the network, or name the commit that is meant",
        )


def _column(
    features: Mapping[str, Any],
    wanted: str | None,
    what: str,
    kind: str,
    names: Sequence[str],
    where: str,
) -> str:
    if wanted is not None:
        if wanted not in features:
            raise UsageError(
                f"no column {wanted!r}", where=where, hint=f"There are: {', '.join(features)}"
            )
        return wanted
    typed = [name for name, feature in features.items() if type(feature).__name__ == kind]
    if len(typed) == 1:
        return typed[0]
    for name in names:
        if name in (typed or features):
            return name
    raise UsageError(
        f"no column is known to be the {what}" if not typed else f"several {what} columns",
        where=where,
        hint=f"Choose one with --data-option {what}=NAME: {', '.join(typed or features)}",
    )


def _labels(
    column: Any, names: Sequence[str] | None, num_classes: int | None, where: str
) -> tuple[Tensor, list[str]]:
    values = list(column)
    missing = [value is None or (isinstance(value, int) and value == -1) for value in values]
    if all(missing) or any(value is None for value in values):
        raise DataError("the labels are not known", where=where, hint="Choose another --split")
    try:
        return class_labels(values, where=where, class_names=names, num_classes=num_classes)
    except DataError as error:
        hint = error.hint or "Choose a column with --data-option label=NAME"
        raise DataError(error.what, where=where, hint=hint) from error


def _element(feature: Any) -> str | None:
    """The type of a column's numbers, where the repository declares it."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    return getattr(feature, "dtype", None)
