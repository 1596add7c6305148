"""What of a folder is read: class folders, images below them, splits; and what is refused.

Not read are hidden files and folders, and what systems and tools leave behind (:data:`LITTER`).
Links are followed like what they lead to. A link that leads nowhere or back to a folder above it is
refused, and so is whatever would make the classes uncertain.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from robench.datasets.base import SPLIT_NAMES
from robench.errors import DataError, UnknownNameError

IMAGE_SUFFIXES = frozenset(
    {
        *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png"),
        *(".pnm", ".ppm", ".tif", ".tiff", ".webp"),
    }
)

LITTER = frozenset(
    {
        *("__macosx", "__pycache__", "@eadir", "#recycle", "#snapshot", "$recycle.bin"),
        *("lost+found", "system volume information", "thumbs.db", "desktop.ini"),
    }
)
"""Names, in lower case, that no class and no image has."""

_CALLED_SPLITS = tuple(dict.fromkeys(n for names in SPLIT_NAMES.values() for n in names))

_SHOWN = 5
"""Names in a message"""


def composed(text: str) -> str:
    """Composed Unicode: macOS stores names decomposed, and a file keeps one id everywhere."""
    return unicodedata.normalize("NFC", text)


def subfolders(folder: Path, apart: Path | None = None) -> dict[str, Path]:
    """Name → each subfolder that is read, in no order.

    Args:
        folder: is there.
        apart: a place, such as that of the masks, whose subfolder is left out.

    Raises:
        DataError: the folder cannot be read, a link leads nowhere, or two names differ only in
            how their Unicode is composed.
    """
    found: dict[str, Path] = {}
    for entry in _entries(folder):
        path = Path(entry.path)
        if not entry.is_dir() or (apart and apart.resolve().is_relative_to(path.resolve())):
            continue
        if composed(entry.name) in found:
            raise DataError("two folders have the same name, composed in two ways", where=path)
        found[composed(entry.name)] = path
    return found


def images_below(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Every image that is read at any depth, in no order.

    Raises:
        DataError: a folder cannot be read, a link leads nowhere or back to a folder above it, or
            what is called an image is no file.
    """
    here = os.path.realpath(folder)
    if here in above:
        raise DataError(
            "the link leads back to a folder above it", where=folder, hint="Remove the link"
        )
    for entry in _entries(folder):
        path = Path(entry.path)
        if entry.is_dir():
            yield from images_below(path, (*above, here))
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            if not entry.is_file():
                raise DataError("is no file", where=path)
            yield path


def has_images(folder: Path) -> bool:
    """Whether images lie in the folder itself."""
    return any(Path(e.path).suffix.lower() in IMAGE_SUFFIXES for e in _files(folder))


def split_folder(
    root: Path, split: str, apart: Path | None = None, *, named: bool = False
) -> str | None:
    """The subfolder that holds a split; None: the folder has no splits.

    A subfolder called train, val, validation or test in small or capital letters, or as the split that
    is asked for, is one if it holds class folders and no images of its own, and if every other folder
    of images holds some of the same class folders. So a class that is called train stays a class.
    Whatever they are called, folders that hold class folders of the same names are splits.

    Args:
        root: holds the subfolders.
        split: the one that is asked for.
        apart: a place that is no class, such as that of the masks.
        named: the classes are named, so that one without a folder moves no label.

    Raises:
        UnknownNameError: there are splits and this is none of them.
        DataError: the subfolders could be splits and could be classes; the split lacks a class folder
            that another has.
    """
    folders = subfolders(root, apart)
    wanted = {name.casefold() for name in (*_CALLED_SPLITS, split)}
    called = {name for name in folders if name.casefold() in wanted}
    flat = {name for name in called if has_images(folders[name])}
    classes = {name: subfolders(folders[name]) for name in sorted(called - flat)}
    splits = [name for name in classes if classes[name]]
    if not splits:
        if flat and folders.keys() <= called:
            raise DataError(
                f"images lie directly in {', '.join(sorted(flat))}, so their classes are unknown",
                where=root,
                hint="Put each class's images into a subfolder of its own; if these are the "
                f"classes, say so: {_as_classes(folders)}",
            )
        splits = _alike(folders)
        if not splits:
            return None
        classes = {name: subfolders(folders[name]) for name in splits}
    beside = sorted(n for n in folders.keys() - classes if next(images_below(folders[n]), None))
    known = {name for found in classes.values() for name in found}
    strange = [
        name
        for name in beside
        if has_images(folders[name]) or known.isdisjoint(subfolders(folders[name]))
    ]
    strange = [name for name in strange if name not in flat]
    if strange:
        raise DataError(
            f"{', '.join(splits)} could be a split, and could be a class beside {strange[0]}",
            where=root,
            hint=f"Name the split's own folder as the data set, {root / splits[0]}, or all classes, "
            f"{_as_classes(folders)}",
        )
    for name in SPLIT_NAMES.get(split, (split,)):
        if (found := _called(name, splits)) is not None:
            lacking = sorted(known - classes[found].keys())
            if lacking and not named:
                raise DataError(
                    f"the split has no class folder {lacking[0]!r}, which another split has",
                    where=root / found,
                    hint="Name all classes in label order with class_names, so that one without a "
                    "folder moves no label",
                )
            return found
        if (found := _called(name, sorted(folders))) is not None:
            raise DataError("the split holds no class folders", where=folders[found])
    raise UnknownNameError(
        f"no split {split!r}",
        where=root,
        hint=f"There are: {', '.join(splits)}; choose one with --split, or give its folder. If these "
        f"are classes, say so: {_as_classes(folders)}",
    )


def refuse_inner_splits(root: Path, apart: Path | None = None) -> None:
    """Refuse ``CLASS/train/…``, of which all splits would be read at once.

    Raises:
        DataError: every subfolder holds folders that are called like splits, and nothing else.
    """
    folders = subfolders(root, apart).values()
    called = {name.casefold() for name in _CALLED_SPLITS}
    for folder in folders:
        inner = {name.casefold() for name in subfolders(folder)}
        if not inner or not inner <= called or has_images(folder):
            return
    if folders:
        raise DataError(
            "the splits lie inside the class folders, so all of them would be read"
            if len(folders) > 1
            else "there is one folder, with splits inside",
            where=root,
            hint="Put the classes inside the splits, such as test/CLASS, and train/CLASS"
            if len(folders) > 1
            else f"Name it as the data set: {next(iter(folders))}",
        )


def _called(name: str, names: Sequence[str]) -> str | None:
    """Which of several names is this one: the same, or else the only one in other letters."""
    if name in names:
        return name
    alike = [other for other in names if other.casefold() == name.casefold()]
    return alike[0] if len(alike) == 1 else None


def _alike(folders: Mapping[str, Path]) -> list[str]:
    """Folders without images of their own, two at least, that hold folders of images by the same names.

    Beside folders of images these have to be the same throughout and two or more; else some that all of
    the folders hold are enough.
    """
    held: dict[str, frozenset[str]] = {}
    flat = 0
    for name, folder in folders.items():
        if has_images(folder):
            flat += 1
            continue
        inner = subfolders(folder).items()
        if found := frozenset(n for n, path in inner if next(images_below(path), None)):
            held[name] = found
    # One folder alone in each, such as `images`, is no class.
    several = len(held) > 1 and max(map(len, held.values())) > 1
    if several and not flat and frozenset.intersection(*held.values()):
        return sorted(held)
    often = Counter(found for found in held.values() if len(found) > 1)
    return sorted(name for name, found in held.items() if often[found] > 1)


def _as_classes(folders: Iterable[str]) -> str:
    """What to write where they are classes and no splits."""
    names = sorted(folders)
    more = ",…" if len(names) > _SHOWN else ""
    return f"class_names={','.join(names[:_SHOWN])}{more}"


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What is read of one folder."""
    try:
        with os.scandir(folder) as entries:
            listed = list(entries)
    except OSError as error:
        raise DataError(f"the folder cannot be read: {error.strerror}", where=folder) from error
    for entry in listed:
        if entry.name.startswith(".") or entry.name.casefold() in LITTER:
            continue
        if entry.is_symlink() and not os.path.exists(entry.path):
            raise DataError("the link leads nowhere", where=entry.path, hint="Remove the link")
        yield entry


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    return (entry for entry in _entries(folder) if not entry.is_dir())
