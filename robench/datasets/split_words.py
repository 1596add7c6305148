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


def names_images(name: str) -> bool:
    """Whether it is what folders of images beside their masks are called."""
    return _says(name, _IMAGES)


def names_masks(name: str) -> bool:
    """Whether it is what folders of masks or of other labels are called."""
    return _says(name, _MASKS)


def _says(name: str, words: frozenset[str]) -> bool:
    return "".join(_words(name)) in words or bool(words.intersection(_words(name)))


def _words(name: str) -> list[str]:
    return [word.lower() for word in _PARTS.findall(name)]
