"""Weights from the web: https only, a known hash, a size limit, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from robench.errors import CheckpointError, HashMismatchError

__all__ = ["CACHE_VARIABLE", "cache_folder", "fetch_weights"]

CACHE_VARIABLE: Final = "ROBENCH_CACHE"
_CHUNK: Final = 2**20
_MAX_BYTES: Final = 8 * 2**30
_TIMEOUT: Final = 60.0


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never to an unencrypted address."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        _require_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open_url(url: str) -> Any:
    return urllib.request.build_opener(_HttpsOnly).open(url, timeout=_TIMEOUT)


def cache_folder() -> Path:
    """``ROBENCH_CACHE``, or ``robench`` below the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "robench"


def fetch_weights(
    url: str,
    sha256: str,
    *,
    folder: Path | None = None,
    max_bytes: int = _MAX_BYTES,
    open_url: Callable[[str], Any] = _open_url,
) -> Path:
    """Download a file once; later calls find it in the cache by its hash.

    Args:
        url: an https address.
        sha256: the expected hash; a file with another is never kept.
        folder: the cache; None: :func:`cache_folder`.
        max_bytes: larger files are refused, whatever the server announces.
        open_url: opens the address: a context manager with ``read(n)`` and ``headers``.

    Raises:
        HashMismatchError: the server sent another file.
        CheckpointError: no https address, no answer, a web page instead of a file, or too large.
    """
    _require_https(url)
    home = (folder or cache_folder()) / "weights" / sha256
    target = home / _file_name(url)
    if target.is_file():
        return target
    try:
        home.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=home, prefix=".part-")
    except OSError as error:
        raise CheckpointError(
            f"the cache cannot be written: {error}", where=home, hint=f"Set {CACHE_VARIABLE}"
        ) from error
    try:
        with os.fdopen(handle, "wb") as stream:
            actual = _copy(url, stream, max_bytes, open_url)
        if actual != sha256:
            raise HashMismatchError(
                f"the server sent a file with sha256 {actual}, the card says {sha256}", where=url
            )
        os.replace(temporary, target)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise CheckpointError(f"cannot be fetched: {error}", where=url) from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    return target


def _require_https(url: str) -> None:
    if urlsplit(url).scheme != "https":
        raise CheckpointError(
            "weights are fetched over https only", where=url, hint="Download the file yourself"
        )


def _file_name(url: str) -> str:
    last = PurePosixPath(unquote(urlsplit(url).path)).name
    return re.sub(r"[^A-Za-z0-9._-]", "_", last).lstrip(".") or "weights"


def _copy(url: str, stream: Any, max_bytes: int, open_url: Callable[[str], Any]) -> str:
    digest = hashlib.sha256()
    received = 0
    with open_url(url) as response:
        if "text/html" in (response.headers.get("Content-Type") or ""):
            raise CheckpointError(
                "answers with a web page, not a file", where=url, hint="Use the direct link"
            )
        announced = int(response.headers.get("Content-Length") or 0)
        while announced <= max_bytes and (piece := response.read(_CHUNK)):
            received += len(piece)
            if received > max_bytes:
                break
            digest.update(piece)
            stream.write(piece)
    if max(received, announced) > max_bytes:
        raise CheckpointError(f"is larger than {max_bytes:,} bytes", where=url)
    if received < announced:
        raise CheckpointError(f"broke off after {received:,} of {announced:,} bytes", where=url)
    return digest.hexdigest()
