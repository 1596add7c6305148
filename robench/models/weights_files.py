"""Where a card's weights are: beside it, in a package, or on the web.

What comes from the web comes by https only, with a known hash, up to a limit of size, whole or not
at all. Written here because ``torch.hub.download_url_to_file`` has no time-out and no size limit, and
would follow a redirect to an unencrypted address.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final
from urllib.parse import unquote, urlsplit

from robench.errors import CheckpointError, HashMismatchError, MissingDependencyError
from robench.files import atomic_write, cache_folder, expanded
from robench.records import WeightsSpec
from robench.text import file_name

_CHUNK: Final = 2**20
MAX_BYTES: Final = 8 * 2**30
"""Larger files are refused, whatever the server announces."""
_TIMEOUT: Final = 60.0


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never to an unencrypted address."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        _require_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def locate_weights(weights: WeightsSpec, folder: Path) -> Path:
    """A card's ``weights`` → the file, fetched if it is an address.

    Args:
        weights: its path is an https address, ``package:NAME/inside/it`` (a file of an installed
            package), absolute, or relative to ``folder``.
        folder: the card's folder.

    Raises:
        MissingDependencyError: the package is not installed.
        CheckpointError: there is no such file, or as for :func:`fetch_weights`.
    """
    path = weights.path
    if "://" in path:
        return fetch_weights(path, weights.sha256)
    if path.startswith("package:"):
        name, _, inside = path.removeprefix("package:").partition("/")
        root = _package_folder(name)
        if root is None:
            raise MissingDependencyError(
                f"the weights are in the package {name!r}, which is not installed",
                where=path,
                hint=f"pip install {name}",
            )
        if "\0" in inside or not (resolved := (root / inside).resolve()).is_relative_to(root):
            raise CheckpointError(f"leads out of the package {name!r}", where=path)
    else:
        resolved = folder / expanded(path)
    if not os.path.isfile(resolved):
        raise CheckpointError(
            "there is no such file", where=resolved, hint="Check weights.path in the card"
        )
    return resolved


def _package_folder(name: str) -> Path | None:
    """Where an installed package is; it is not imported."""
    try:
        found = importlib.util.find_spec(name) if name.isidentifier() else None
    except ValueError:  # running, without a file of its own
        return None
    folders = found and found.submodule_search_locations
    return Path(folders[0]).resolve() if folders else None


def fetch_weights(url: str, sha256: str) -> Path:
    """Download a file once into :func:`robench.files.cache_folder`; later calls find it there.

    Args:
        url: an https address.
        sha256: the expected hash; a file with another is never kept.

    Raises:
        HashMismatchError: the server sent another file.
        CheckpointError: no https address, no answer, a web page instead of a file, or too large.
        StoreError: the cache cannot be written.
    """
    _require_https(url)
    last = PurePosixPath(unquote(urlsplit(url).path)).name.lstrip(".")
    target = cache_folder() / "weights" / sha256 / _named(last or "weights")

    def copy(stream: BinaryIO) -> None:
        digest = hashlib.sha256()
        for piece in _pieces(url):
            digest.update(piece)
            stream.write(piece)
        if (actual := digest.hexdigest()) != sha256:
            raise HashMismatchError(
                f"the server sent a file with sha256 {actual}, the card says {sha256}", where=url
            )

    if not target.is_file():
        atomic_write(target, copy)
    return target


def _require_https(url: str) -> None:
    try:
        scheme = urlsplit(url).scheme
    except ValueError as error:
        raise CheckpointError(f"is no address: {error}", where=url) from error
    if scheme != "https":
        raise CheckpointError(
            "weights are fetched over https only", where=url, hint="Download the file yourself"
        )


def _pieces(url: str) -> Iterator[bytes]:
    received = 0
    try:
        with urllib.request.build_opener(_HttpsOnly).open(url, timeout=_TIMEOUT) as response:
            if "text/html" in (response.headers.get("Content-Type") or ""):
                raise CheckpointError(
                    "answers with a web page, not a file", where=url, hint="Use the direct link"
                )
            announced = int(response.headers.get("Content-Length") or 0)
            while announced <= MAX_BYTES and (piece := response.read(_CHUNK)):
                received += len(piece)
                if received > MAX_BYTES:
                    break
                yield piece
    except (OSError, HTTPException, ValueError) as error:
        raise CheckpointError(f"cannot be fetched: {error}", where=url) from error
    if max(received, announced) > MAX_BYTES:
        raise CheckpointError(f"is larger than {MAX_BYTES:,} bytes", where=url)
    if received < announced:
        raise CheckpointError(f"broke off after {received:,} of {announced:,} bytes", where=url)


def _named(last: str) -> str:
    """The file's name; its ending says how it is read."""
    stem, ending = os.path.splitext(last)
    return f"{file_name(stem)}.{file_name(ending[1:])}" if ending[1:] else file_name(last)
