"""Where cards lie: the packaged zoo and the user's own folders. Reads none, and loads nothing heavy."""

from __future__ import annotations

import os
from pathlib import Path

from robench.errors import UsageError
from robench.files import expanded

CARD_NAME = "card.toml"
ZOO_VARIABLE = "ROBENCH_ZOO"
"""Environment variable with further zoo folders, separated as in PATH."""


def packaged_zoo() -> Path:
    """The zoo that came with robench."""
    package = Path(__file__).parents[1]
    # A wheel carries the zoo inside the package; a checkout has it beside the package.
    inside = package / "_model_zoo"
    return (inside if inside.is_dir() else package.parent / "model_zoo").resolve()


def zoo_folders() -> tuple[Path, ...]:
    """Existing zoo folders, most specific first: ``ROBENCH_ZOO``, ``./model_zoo``, the packaged.

    Raises:
        UsageError: ``ROBENCH_ZOO`` names a folder that does not exist.
    """
    named = [expanded(p) for p in os.environ.get(ZOO_VARIABLE, "").split(os.pathsep) if p]
    for folder in named:
        if not os.path.isdir(folder):
            raise UsageError(
                "there is no such folder", where=folder, hint=f"Correct or unset {ZOO_VARIABLE}"
            )
    usual = (Path.cwd() / "model_zoo", packaged_zoo())
    return tuple(dict.fromkeys(f.resolve() for f in (*named, *usual) if f.is_dir()))


def card_files() -> dict[Path, Path]:
    """The files of all cards, each with its zoo's folder, in the order in which they hide each other.

    Raises:
        UsageError: as :func:`zoo_folders`.
    """
    found = (
        (path, zoo) for zoo in zoo_folders() for path in sorted(zoo.glob(f"*/*/*/{CARD_NAME}"))
    )
    return dict(found)
