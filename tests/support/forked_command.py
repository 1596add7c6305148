"""``robench …`` in a fork of the test process, which has loaded already what an interpreter would load.

For tests of signals, streams and exit codes of commands that run a model: a new interpreter takes
seconds to come that far. What a new interpreter itself does, at its start and its end, is not shown.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

from robench.cli.main import main


class ForkedCommand:
    """A command that runs, with its output in files.

    Args:
        words: what follows ``robench``.
        folder: where it works; what it prints is put beside, not into it.
        output: instead of a file, what standard output is written to.
        encoding: of both streams.
        path: folders that imports look at first.
    """

    def __init__(
        self,
        *words: str,
        folder: Path,
        output: str | None = None,
        encoding: str = "utf-8",
        path: str = "",
    ) -> None:
        self._files = [folder.with_name(f"{folder.name}.{name}") for name in ("out", "err")]
        self.returncode: int | None = None
        for file in self._files:
            file.write_bytes(b"")
        self.pid = os.fork()
        if self.pid == 0:
            code = 70  # of no command
            try:
                _become(folder, [output or self._files[0], self._files[1]], encoding, path)
                code = _exit_code([*words])
            finally:
                with contextlib.suppress(OSError):
                    sys.stderr.flush()
                os._exit(code)

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code, or minus the signal that ended it."""
        if self.returncode is None:
            _, status = os.waitpid(self.pid, 0)
            self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    @property
    def stderr(self) -> str:
        return self._files[1].read_text(errors="replace")

    def done(self) -> subprocess.CompletedProcess[str]:
        """Wait for it; what it left."""
        code = self.wait()
        out = self._files[0].read_text(errors="replace")
        return subprocess.CompletedProcess([], code, out, self.stderr)


def _become(folder: Path, outputs: list[str | Path], encoding: str, path: str) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    sys.path[:0] = path.split(os.pathsep) if path else []
    for number, (name, file) in enumerate(zip(("stdout", "stderr"), outputs, strict=True), start=1):
        opened = os.open(file, os.O_WRONLY)
        os.dup2(opened, number)
        os.close(opened)
        stream = io.TextIOWrapper(
            os.fdopen(number, "wb"), encoding=encoding, line_buffering=number == 2
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)  # so that robench sees them as the process's own


def _exit_code(words: list[str]) -> int:
    sys.argv = ["robench", *words]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 70


__all__ = ["ForkedCommand"]
