"""What of a folder is read: subfolders, images below them; and what is refused.

Not read are hidden files and folders, and what systems and tools leave behind (:data:`LITTER`).
Links are followed like what they lead to. A link that leads nowhere or back to a folder above it is
refused. :mod:`robench.datasets.split_folders` says which subfolders are classes.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from robench.errors import DataError

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
