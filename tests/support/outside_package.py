"""A distribution from outside robench, as pip would leave it in a folder of the path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

__all__ = ["install"]


def install(
    folder: Path,
    name: str,
    version: str,
    points: Mapping[str, Mapping[str, str]],
    files: Mapping[str, str],
) -> None:
    """Write a distribution's modules and metadata into ``folder``.

    Args:
        folder: where; it is up to the caller to put it on the path.
        name, version: the distribution's.
        points: entry points, group → name → ``package.module:attribute``.
        files: file's path → content.
    """
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
    metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines: list[str] = []
    for group, entries in points.items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in entries.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
