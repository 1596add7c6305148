"""Which subfolders are splits, and which are classes; where both could be meant the folder is refused."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from robench.datasets.base import SPLIT_NAMES
from robench.datasets.folder_tree import has_images, images_below, subfolders
from robench.datasets.split_words import (
    called_splits,
    images_and_masks,
    names_no_class,
)
from robench.errors import DataError, UnknownNameError

_SHOWN = 5
"""Names in a message"""


@dataclass(frozen=True)
class Inside:
    """What a folder holds: class folders by name, and where they lie.

    Args:
        home: the folder itself, or the only folder in it, and so on.
        classes: each folder there.
        flat: images lie there too, which are then of no class.
    """

    home: Path
    classes: Mapping[str, Path]
    flat: bool

    @property
    def alike(self) -> frozenset[str]:
        """The classes in small letters: splits may write them differently."""
        return frozenset(name.casefold() for name in self.classes)


def look_inside(folder: Path, names: Collection[str] = ()) -> Inside:
    """What a folder holds, seen through folders that hold one folder and nothing else.

    ``training_set/training_set/cat`` and ``training/images/cat`` hold ``cat``, if it is one of several
    folders or of ``names``; else only folders are seen through whose names are no class's, or are those
    of the folders around them.

    Raises:
        DataError: a folder cannot be read, or a link leads nowhere.
    """
    home = here = folder
    held = within = subfolders(folder)
    seen, unnamed = {os.path.realpath(folder)}, True
    while len(within) == 1 and within.keys().isdisjoint(names) and not has_images(here):
        ((name, inner),) = within.items()
        unnamed = unnamed and (names_no_class(name) or name.casefold() == here.name.casefold())
        here = inner
        if os.path.realpath(here) in seen:
            break
        seen.add(os.path.realpath(here))
        within = subfolders(here)
        if unnamed or (len(within) > 1 and not has_images(here)):
            home, held = here, within
    return Inside(home, held, has_images(home))


def split_folder(
    root: Path,
    split: str,
    apart: Path | None = None,
    *,
    names: Collection[str] = (),
    some: bool = False,
) -> Path | None:
    """The folder below ``root`` that holds the classes of a split; None: there are no splits.

    A subfolder that is called like a split (:mod:`robench.datasets.split_words`), or as the split that
    is asked for, is one if it holds class folders and no images of its own, and if every other folder
    of images holds some of the same class folders. So a class that is called train stays a class.
    Whatever they are called, folders that hold class folders of the same names are splits.

    Args:
        root: holds the subfolders.
        split: the one that is asked for.
        apart: a place that is no class, such as that of the masks.
        names: the classes, where they are named.
        some: a class may have no folder, as labels do not follow from those that are there.

    Raises:
        UnknownNameError: there are splits and this is none of them.
        DataError: the subfolders could be splits and could be classes; the splits hold no class
            folders; the split lacks one that another has.
    """
    folders = subfolders(root, apart)
    held = {name: look_inside(path, names) for name, path in folders.items()}
    called = _called_as(split, folders)
    flat = {name for name in called if held[name].flat}
    splits = sorted(name for name in called - flat if held[name].classes)
    if not splits:
        _refuse_flat(root, flat, folders)
        splits = _alike(held)
        if not splits:
            return None
    known = frozenset[str]().union(*(held[name].alike for name in splits))
    beside = sorted(
        n for n in folders.keys() - splits - flat if next(images_below(folders[n]), None)
    )
    for name in beside:
        if held[name].flat or known.isdisjoint(held[name].alike):
            raise DataError(
                f"{', '.join(splits)} could be a split, and could be a class beside {name}",
                where=root,
                hint=f"Name the split's own folder as the data set, {held[splits[0]].home}, or all "
                f"classes, {_as_classes(folders)}",
            )
    splits = sorted(splits + beside)
    for name in SPLIT_NAMES.get(split, (split,)):
        if (found := _called(name, splits)) is not None:
            if not some:
                _refuse_lacking(held[found], [held[other] for other in splits])
            return held[found].home
        if (found := _called(name, sorted(folders))) is not None:
            raise DataError("the split holds no class folders", where=folders[found])
    raise UnknownNameError(
        f"no split {split!r}",
        where=root,
        hint=f"There are: {', '.join(splits)}; choose one with --split, or give its folder. If these "
        f"are classes, say so: {_as_classes(folders)}",
    )


def refuse_unclear(
    root: Path, split: str, apart: Path | None = None, *, named: bool = False
) -> None:
    """Refuse a folder whose subfolders cannot be classes, or not without a word.

    Args:
        root: holds the subfolders.
        split, apart: as of :func:`split_folder`.
        named: the subfolders are said to be the classes.

    Raises:
        DataError: splits lie inside the class folders, so that all of them would be read; one folder
            holds all others; images lie beside their masks.
    """
    folders = {n: p for n, p in subfolders(root, apart).items() if next(images_below(p), None)}
    held = {name: look_inside(path) for name, path in folders.items()}
    if len(held) == 1:
        ((name, inside),) = held.items()
        named = named or name in _called_as(split, held)
        splits = bool(inside.classes) and _are_splits(inside.classes)
        if inside.flat and names_no_class(name):
            raise DataError(
                f"images lie directly in {name}, so their classes are unknown",
                where=root,
                hint="Put each class's images into a subfolder of its own",
            )
        if inside.flat or not (splits or (len(inside.classes) > 1 and not named)):
            return
        raise DataError(
            f"there is one folder, with {'splits' if splits else 'several'} inside",
            where=root,
            hint=f"Name it as the data set: {inside.home}",
        )
    if not named:
        _refuse_what_belongs(root, folders, _called_as(split, folders))
    inner = [subfolders(path).keys() for path in folders.values()]
    # The splits of test_set/test_set, train_set/train_set lie beside each other all the same.
    nested = _are_splits(folders) and max(map(len, inner), default=0) == 1
    if inner and not nested and all(map(_holds_splits, folders.values())):
        raise DataError(
            "the splits lie inside the class folders, so all of them would be read",
            where=root,
            hint="Put the classes inside the splits, such as test/CLASS, and train/CLASS; if these are "
            f"no classes, name one as the data set, such as {min(folders.values())}",
        )


def _refuse_what_belongs(root: Path, folders: Mapping[str, Path], splits: Collection[str]) -> None:
    """Refuse images beside their masks, as subfolders, or as what subfolders other than splits hold; and
    folders that repeat those beside them."""
    if (pair := images_and_masks(folders)) is not None:
        raise DataError(
            f"{pair[0]} and {pair[1]} could be images and what belongs to them, and could be classes",
            where=root,
            hint="Name the folder whose subfolders are the classes, such as "
            f"{folders[pair[0]]}; or all classes, {_as_classes(folders)}",
        )
    for name, folder in folders.items():
        if name in splits:
            continue
        inner = {n for n, path in subfolders(folder).items() if next(images_below(path), None)}
        if len(inner) > 1 and inner <= folders.keys() - {name} and not has_images(folder):
            raise DataError(
                f"{name} holds folders that are called like those beside it, so it may be no class",
                where=root,
                hint="Put it elsewhere; masks are named with masks=PATH. If it is a class, name all, "
                f"{_as_classes(folders)}",
            )
        if (pair := images_and_masks(inner)) is not None:
            raise DataError(
                f"{pair[0]} and {pair[1]} lie in one class folder, so masks would be read as images",
                where=folder,
                hint="Put the masks elsewhere, and name their folder with masks=PATH; if they are "
                f"images, name all classes, {_as_classes(folders)}",
            )


def _holds_splits(folder: Path) -> bool:
    """Whether folders lie there that are called like splits, and nothing else."""
    inner = subfolders(folder).keys()
    return bool(inner) and _are_splits(inner) and not has_images(folder)


def _are_splits(names: Collection[str]) -> bool:
    return len(called_splits(names)) == len(names)


def _refuse_flat(root: Path, flat: Collection[str], folders: Mapping[str, Path]) -> None:
    """Refuse splits whose images lie in no class folders: there is nothing else, or they differ."""
    kinds = {what.kinds for name, what in called_splits(folders).items() if name in flat}
    if flat and (folders.keys() <= set(flat) or len(kinds) > 1):
        raise DataError(
            f"images lie directly in {', '.join(sorted(flat))}, so their classes are unknown",
            where=root,
            hint="Put each class's images into a subfolder of its own, such as test/CLASS; if these "
            f"are the classes, say so: {_as_classes(folders)}",
        )


def _refuse_lacking(chosen: Inside, splits: Iterable[Inside]) -> None:
    """Refuse a split that lacks a class folder of another, which would move the labels."""
    for name in sorted({n for other in splits for n in other.classes} - chosen.classes.keys()):
        raise DataError(
            f"the split has no class folder {name!r}, which another split has",
            where=chosen.home,
            hint="Its folder is written in other letters: rename one"
            if name.casefold() in chosen.alike
            else "Name all classes in label order with class_names, so that one without a folder "
            "moves no label",
        )


def _called_as(split: str, names: Iterable[str]) -> set[str]:
    """Those of the names that are called like splits, or as this one."""
    listed = list(names)
    return {n for n in listed if n.casefold() == split.casefold()} | called_splits(listed).keys()


def _called(name: str, names: Sequence[str]) -> str | None:
    """Which of several names is this one: the same, or else the only one in other letters."""
    if name in names:
        return name
    alike = [other for other in names if other.casefold() == name.casefold()]
    return alike[0] if len(alike) == 1 else None


def _alike(held: Mapping[str, Inside]) -> list[str]:
    """Folders without images of their own, two at least, that hold folders of images by the same names.

    Beside folders of images these have to be the same throughout and two or more; else some that all of
    the folders hold are enough.
    """
    found: dict[str, frozenset[str]] = {}
    for name, inside in held.items():
        classes = (n.casefold() for n, p in inside.classes.items() if next(images_below(p), None))
        if not inside.flat and (known := frozenset(classes)):
            found[name] = known
    # One folder alone in each, such as `images`, is no class.
    several = len(found) > 1 and max(map(len, found.values())) > 1
    flat = any(inside.flat for inside in held.values())
    if several and not flat and frozenset.intersection(*found.values()):
        return sorted(found)
    often = Counter(names for names in found.values() if len(names) > 1)
    return sorted(name for name, names in found.items() if often[names] > 1)


def _as_classes(folders: Iterable[str]) -> str:
    """What to write where they are classes and no splits."""
    names = sorted(folders)
    if len(names) > _SHOWN:
        return f"class_names={','.join(names[:_SHOWN])},…"
    listed = (
        json.dumps(names, ensure_ascii=False) if any("," in n for n in names) else ",".join(names)
    )
    return f"class_names={listed}"
