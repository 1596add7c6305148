"""Whether anything was executed, fetched or written: the interpreter's own reports."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any

from robench.errors import RobenchError

_EXECUTED = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pty.spawn")
_FETCHED = ("socket.connect", "socket.getaddrinfo", "urllib.Request")
_CHANGED = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.symlink")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT

_seen: list[str] | None = None
_installed = False

STRANGER = "stranger_of_the_campaigns"
"""A module that nobody may import; :func:`plant` makes it importable."""


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    if event in _EXECUTED or event in _FETCHED or event in _CHANGED:
        _seen.append(f"{event} {arguments!r:.200}")
    elif event == "open":
        path, _, flags = arguments
        if isinstance(flags, int) and flags & _WRITES and path != os.devnull:
            _seen.append(f"opened for writing: {path!r:.200}")


@contextlib.contextmanager
def nothing_happens() -> Iterator[None]:
    """Raise if the block starts a process, asks the network, changes a file or imports
    :data:`STRANGER`."""
    global _seen, _installed
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    _seen = []
    try:
        yield
    finally:
        seen, _seen, sys.dont_write_bytecode = _seen, None, bytecode
        assert not seen, seen
        assert STRANGER not in sys.modules


def plant(folder: os.PathLike[str]) -> None:
    """Put the stranger's module into a folder that is on Python's path."""
    with open(os.path.join(folder, f"{STRANGER}.py"), "w") as stream:
        stream.write("def build(*_, **__):\n    raise SystemExit(0)\n\n\nAttack = build\n")


def is_one_line(error: RobenchError) -> None:
    """The error is one line that no terminal obeys."""
    assert is_text(str(error)), repr(error)


def is_text(text: str) -> bool:
    """Whether it is one line without control characters and marks that reverse text."""
    kinds = {unicodedata.category(character) for character in text}
    return kinds.isdisjoint(("Cc", "Cs", "Zl", "Zp")) and not re.search(
        "[\u202a-\u202e\u2066-\u2069]", text
    )


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Let robench's errors through if each is one line."""
    try:
        yield
    except RobenchError as error:
        is_one_line(error)
        raise
