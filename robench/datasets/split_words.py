"""What the name of a folder says of splits: ``training_set`` and ``seg_train`` are train, and so on."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

_KINDS = {
    "train": ("train", "training", "trn"),
    "validation": ("val", "valid", "validation", "dev", "eval", "evaluation"),
    "test": ("test", "testing", "tst"),
    "labelled": ("labeled", "labelled"),
    "unlabelled": ("pred", "prediction", "predictions", "unlabeled", "unlabelled"),
}
_KIND_OF = {word: kind for kind, words in _KINDS.items() for word in words}

_IMAGES = frozenset(
    {
        *("image", "images", "img", "imgs", "jpegimages", "photo", "photos", "picture", "pictures"),
        *("jpg", "jpgs", "jpeg", "png", "pngs"),
    }
)
_MASKS = frozenset(
    {
        *("annotation", "annotations", "groundtruth", "gt", "label", "labels", "mask", "masks"),
        *("segmentation", "segmentations", "segmentationclass", "segmentationobject"),
    }
)
_FILLERS = _IMAGES | {"data", "dataset", "folder", "part", "set", "sets", "split", "splits"}
"""Words that name no class, in lower case."""

_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_]+")
_MASK_OF = re.compile(
    r"(.*\S)[ _.-](?:mask|masks|segmentation|seg|gt)(?:[ _.-]?\d+)?", re.IGNORECASE
)
_JOINED = re.compile(f"({'|'.join(_KIND_OF)})({'|'.join(sorted(_FILLERS))})")


@dataclass(frozen=True)
class Said:
    """The kinds of split that a name says, and what else it says."""

    kinds: frozenset[str]
    rest: tuple[str, ...]


def said(name: str) -> Said | None:
    """What a name says of splits; None: nothing.

    >>> said("Train_set"), said("trainA"), said("bus")
    (Said(kinds=frozenset({'train'}), rest=()), Said(kinds=frozenset({'train'}), rest=('a',)), None)
    """
    kinds, rest = set(), []
    for word in _words(name):
        joined = _JOINED.fullmatch(word)
        if (kind := _KIND_OF.get(joined[1] if joined else word)) is not None:
            kinds.add(kind)
        elif not (word in _FILLERS or word.isdecimal()):
            rest.append(word)
    return Said(frozenset(kinds), tuple(rest)) if kinds else None


def called_splits(names: Iterable[str]) -> dict[str, Said]:
    """Those of the names beside each other that are called like splits, and what they say.

    Such a name says a kind of split and nothing else (``training_set``), or other names say other kinds
    with the same rest (``seg_train`` and ``seg_test``; ``trainA`` and ``testA``).
    """
    found = {name: what for name in names if (what := said(name)) is not None}
    kinds = defaultdict(set)
    for what in found.values():
        kinds[what.rest].add(what.kinds)
    return {n: what for n, what in found.items() if not what.rest or len(kinds[what.rest]) > 1}


def names_no_class(name: str) -> bool:
    """Whether a name says that images lie there, or a split, and nothing else."""
    what = said(name)
    return what is not None and not what.rest if what else set(_words(name)) <= _FILLERS


def images_and_masks(names: Iterable[str]) -> tuple[str, str] | None:
    """Two of the names that say that one folder holds images, and the other what belongs to them."""
    listed = sorted(names)
    masks = [name for name in listed if _says(name, _MASKS)]
    images = [name for name in listed if _says(name, _IMAGES) and name not in masks]
    return (images[0], masks[0]) if images and masks else None


def masked_image(name: str) -> str | None:
    """The name of the image whose mask a file's name, without its suffix, says that it is.

    >>> masked_image("benign (1)_mask_2"), masked_image("mask")
    ('benign (1)', None)
    """
    found = _MASK_OF.fullmatch(name)
    return None if found is None else found[1]


def _says(name: str, words: frozenset[str]) -> bool:
    """Whether it says one of the words, and nothing but that and fillers."""
    parts = [word for word in _words(name) if not word.isdecimal()]
    return "".join(parts) in words or (
        not words.isdisjoint(parts) and _FILLERS.union(words).issuperset(parts)
    )


def _words(name: str) -> list[str]:
    return [word.lower() for word in _PARTS.findall(name)]
