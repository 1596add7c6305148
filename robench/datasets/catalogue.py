"""Data sets by name, folder or file."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from robench.datasets.arrays import ARRAY_SUFFIXES, load_arrays
from robench.datasets.base import Dataset, hold_out
from robench.datasets.corrupted_files import open_published
from robench.datasets.image_files import FolderDataset
from robench.datasets.preprocessing import PREPROCESSING_OPTIONS, Preprocessing
from robench.datasets.torchvision_sets import TORCHVISION_SETS, load_torchvision
from robench.errors import DataError, UnknownNameError, UsageError, data_errors
from robench.files import expanded
from robench.records import PreprocessingSpec
from robench.registry import Registry, is_target, unknown_name

DATASETS: Registry[Callable[..., Dataset]] = Registry("data set", "robench.datasets")
"""Name → ``loader(split, *, root, download, **options)``."""

_HERE = "robench.datasets"

DATASETS.add("digits", f"{_HERE}.digits:load_digits", "1,797 handwritten digits, 8x8, embedded")
for _name, (_, _summary) in TORCHVISION_SETS.items():
    DATASETS.add(_name, partial(load_torchvision, _name), _summary)
for _name, _target, _summary in (
    (
        "cifar10-jpeg",
        "image_files:load_cifar10_jpeg",
        "CIFAR-10's images as JPEG files: not CIFAR-10",
    ),
    ("tiny-imagenet", "tiny_imagenet:load_tiny_imagenet", "110,000 images, 64x64, 200 classes"),
    (
        "imagenet",
        "imagenet:load_imagenet",
        "ILSVRC 2012: the field's 5,000 images, 1,000 classes",
    ),
):
    DATASETS.add(_name, f"{_HERE}.{_target}", _summary)

_OF_ANY_SIZE = ("tiny-imagenet", "imagenet")
"""Registered sets that prepare their images."""

_VALIDATION_SHARE = 10
"""One in so many training samples validates where a data set has no validation split."""

_VALIDATION_MOST = 2_000

_LENIENT = ConfigDict(coerce_numbers_to_str=True, arbitrary_types_allowed=True)


def load_dataset(
    name: str | Path,
    /,
    *,
    split: str = "test",
    root: str | Path | None = None,
    n: int | None = None,
    download: bool = False,
    preprocessing: PreprocessingSpec | None = None,
    trust_code: bool = False,
    corrupted: str | Path | None = None,
    **options: Any,
) -> Dataset:
    """A data set by registered name, from a folder, a file of arrays, or the Hugging Face Hub.

    Args:
        name: a name of ``DATASETS``; or the path of a folder of class subfolders or of an
            ``.npz``, ``.npy``, ``.pt`` file, optionally written ``folder:PATH``, ``file:PATH``;
            or ``hf:OWNER/NAME``; or, where trusted, a loader ``package.module:function``.
        split: which part; a folder may have one subfolder for each split.
        root: where downloaded sets are kept.
        n: take a fixed subset of so many samples (``Dataset.subset``).
        download: fetch what is missing, for sets that can be fetched.
        preprocessing: what a model's card asks for; taken where images are of any size and
            ``options`` say nothing of it. Sets of one size and arrays stay as they are.
        trust_code: import a loader that is written out, ``package.module:function``.
        corrupted: a folder of the same samples under common corruptions, as CIFAR-10-C or ImageNet-C is,
            for the suite ``corruptions``.
        options: the loader's own, such as ``size`` and ``masks`` for folders.

    Raises:
        UnknownNameError: neither a known name nor an existing path.
        DataError: the data is missing, empty or malformed.
        UsageError: ``n`` does not fit, or an option is not known here or has a wrong value.
    """
    where = None if root is None else expanded(root)
    load, prepares = _loader(str(name), where, download, trust_code)
    if preprocessing is not None and prepares and not PREPROCESSING_OPTIONS & options.keys():
        options = {**options, **preprocessing.model_dump(exclude_none=True)}
    options = _typed(load, options, str(name))
    with data_errors(str(name)):
        try:
            dataset = load(split=split, **options)
        except TypeError as error:
            if "unexpected keyword argument" in str(error):
                option = str(error).rpartition("argument ")[2]
                raise UsageError(f"data set {str(name)!r} has no option {option}") from error
            raise
    if not isinstance(dataset, Dataset):
        raise DataError(
            f"gave {type(dataset).__name__}, no robench.datasets.Dataset",
            where=str(name),
            hint="Let it return robench.datasets.from_torch(…) of what it has",
        )
    if corrupted is not None:
        dataset.published = open_published(corrupted, dataset)
    return dataset if n is None else dataset.subset(n)


def _typed(load: Callable[..., Dataset], options: dict[str, Any], name: str) -> dict[str, Any]:
    """Options as a loader declares their types: ``"no"`` is False where it wants a bool.

    Raises:
        UsageError: a value is of another type.
    """
    function = load.func if isinstance(load, partial) else load
    try:
        hints = get_type_hints(Preprocessing.of) | get_type_hints(function)
    except (NameError, TypeError):  # a loader from outside, whose annotations are its own affair
        return options
    found = dict(options)
    for option in options.keys() & hints.keys():
        try:
            found[option] = TypeAdapter(hints[option], config=_LENIENT).validate_python(
                options[option]
            )
        except ValidationError as error:
            raise UsageError(
                f"option {option} of data set {name!r} cannot be {options[option]!r}: "
                f"{error.errors()[0]['msg']}"
            ) from error
    return found


def load_training_splits(
    name: str | Path,
    /,
    *,
    root: str | Path | None = None,
    download: bool = False,
    trust_code: bool = False,
    **options: Any,
) -> tuple[Dataset, Dataset]:
    """(training, validation) parts; neither holds a test sample.

    A set with its own validation split gives that; from any other, a fixed stratified
    tenth of the training split, at most 2,000 samples, is held out.

    Raises:
        as ``load_dataset``.
    """
    load = partial(
        load_dataset, name, root=root, download=download, trust_code=trust_code, **options
    )
    train = load(split="train")
    try:
        validation = load(split="validation")
    except UnknownNameError:  # this set has no such split
        pass
    else:
        # A folder or file without splits gives the same samples whatever it is asked for.
        if set(train.sample_ids).isdisjoint(validation.sample_ids):
            return train, validation
    if len(train) < 2:
        raise DataError("one sample cannot be parted into training and validation", where=name)
    return hold_out(train, max(1, min(len(train) // _VALIDATION_SHARE, _VALIDATION_MOST)))


def _loader(
    name: str, root: Path | None, download: bool, trust_code: bool
) -> tuple[Callable[..., Dataset], bool]:
    """What loads it, and whether that prepares images of any size."""
    kind, colon, rest = name.partition(":")
    if colon and kind == "hf":
        # Imported here: no other path needs it.
        from robench.datasets.hugging_face import load_hugging_face

        return partial(load_hugging_face, rest, root=root), True
    explicit = bool(colon) and kind in ("folder", "file")
    path = expanded(rest if explicit else name)
    if not explicit and name in DATASETS:
        return partial(DATASETS[name], root=root, download=download), name in _OF_ANY_SIZE
    if explicit and not os.path.exists(path):
        raise DataError("the path does not exist", where=path)
    if os.path.isdir(path):
        return partial(FolderDataset.open, path), True
    if path.suffix in ARRAY_SUFFIXES and (os.path.exists(path) or "/" in name):
        return partial(load_arrays, path), False
    if os.path.isfile(path):
        raise UsageError(
            f"{path.suffix or 'a file without suffix'} is no data format known here",
            where=path,
            hint=f"Use a folder of images, or one of {', '.join(ARRAY_SUFFIXES)}",
        )
    if is_target(name):
        load = DATASETS.find(name, trust_code=trust_code)
        return partial(load, root=root, download=download), False
    raise unknown_name("data set", name, list(DATASETS))
