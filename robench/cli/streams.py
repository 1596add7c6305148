"""Standard output and error that cannot fail: a finished evaluation is no failure because nobody
reads of it.

A console that lacks a character shows its escape. A pipe that is closed, or a disk that is full,
takes no more; what was lost is said at the end.
"""

import errno
import io
import os
import select
import sys
from typing import Any, TextIO

_HOME = {"stdout": 1, "stderr": 2}


class _Tolerant(io.FileIO):
    """A file descriptor that remembers its first failure, and then swallows what is written."""

    lost: OSError | None = None

    def write(self, content: Any, /) -> int:
        if self.lost is None:
            try:
                while (written := super().write(content)) is None:
                    select.select([], [self], [])  # somebody made it non-blocking
                return written
            except OSError as error:
                self.lost = error
        return memoryview(content).nbytes


def make_tolerant() -> None:
    """Put tolerant streams in place of the process's own; a program's or a test's stay."""
    if sys.platform == "win32":  # whose consoles are no files
        return
    for name, descriptor in _HOME.items():
        stream: TextIO | None = getattr(sys, name)
        if stream is None:
            # Closed by whoever started us: else the first file that is opened would get its number.
            _fill(descriptor)
            setattr(sys, name, _text(descriptor, "utf-8", line_buffering=False))
        elif stream is getattr(sys, f"__{name}__") and not isinstance(_raw(stream), _Tolerant):
            stream.flush()
            made = _text(descriptor, stream.encoding, line_buffering=stream.isatty())
            setattr(sys, name, made)


def lost_output() -> str | None:
    """Why not all of standard output was written; None: it was, or its reader has gone."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        return str(error)
    raw = _raw(sys.stdout)
    lost = raw.lost if isinstance(raw, _Tolerant) else None
    # `robench results list | head` is nobody's error.
    return None if lost is None or lost.errno == errno.EPIPE else lost.strerror or str(lost)


def _fill(descriptor: int) -> None:
    opened = os.open(os.devnull, os.O_RDWR)
    if opened != descriptor:
        os.dup2(opened, descriptor)
        os.close(opened)


def _text(descriptor: int, encoding: str, *, line_buffering: bool) -> TextIO:
    raw = _Tolerant(descriptor, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding, errors="backslashreplace", line_buffering=line_buffering
    )


def _raw(stream: Any) -> Any:
    return getattr(getattr(stream, "buffer", None), "raw", None)
