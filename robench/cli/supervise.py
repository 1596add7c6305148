"""An exit code that means what it says: a command that runs a model does so in a child.

Code of a model's may end its process with any exit code, 0 among them, or crash it. So the process
that was started waits for another, and believes an exit code only if the command itself has told it,
at its end; a command that ends without a word has failed. One that has told it and does not end, as a
thread of the model's goes on for ever, is ended a while later.

On Linux it forks before it loads anything: the child is of the same terminal and process group, so
that Ctrl-C, Ctrl-Z and progress bars are as ever, and dies with its parent. Elsewhere it starts a new
interpreter, which takes time, and only for the gate, whose exit code is an answer; what is sent to
the parent alone reaches that child as SIGTERM does, but not SIGINT, and not its parent's death.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

from robench.errors import ended_process

_FAILED = 2
_FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
_SET_PARENTS_DEATH_SIGNAL = 1  # of Linux' prctl

_CODES = (0, 1, 2, 130)
"""With which a command may end"""
_OFFSET = 64
"""What a new interpreter adds to the exit code that it tells"""
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from robench.cli.supervise import be_supervised; be_supervised(); "
    "from robench.cli.main import main; main()"
)

_GRACE = 10.0
"""Seconds for which a process may go on after its command has told its exit code"""
_LOOK = 0.5
"""Seconds between two looks whether it has"""

_told: list[int] = []
"""The file descriptor on which a fork tells its exit code"""
_offsets: list[int] = []
"""Of a new interpreter: :data:`_OFFSET`"""


def supervise(*, answers: bool = True) -> None:
    """Go on in a child; the parent never returns, and ends as the child says that it ended.

    Where that takes a new interpreter, only if the command's exit code ``answers`` a question. Without
    a further process this is nothing.
    """
    if sys.platform.startswith("linux"):
        _fork()
    elif answers and not _offsets:
        sys.exit(_started_again(_START))


def be_supervised() -> None:
    """This is the child that was started again."""
    _offsets.append(_OFFSET)


def tell(code: int) -> int:
    """The command has come to its own end, with this exit code; the one to end the process with."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    for descriptor in _told:
        with contextlib.suppress(OSError):
            os.write(descriptor, b"%d" % code)
    _told.clear()
    code += sum(_offsets)
    if _offsets:
        threading.Thread(target=_end_late, args=(code,), daemon=True).start()
    return code


def _end_late(code: int) -> None:
    """End this process, which a thread of the model's keeps alive."""
    time.sleep(_GRACE)
    _say_goes_on()
    os._exit(code)


def _say_goes_on() -> None:
    print(
        "robench: warning: the model's code goes on after the command's end, in a thread or a "
        f"process: ended after {_GRACE:g} seconds",
        file=sys.stderr,
        flush=True,
    )


def _started_again(start: str) -> int:
    """Run this command's words in a new interpreter; what it tells."""
    # Without -P the working folder's json.py would be the first that it imports.
    command = [sys.executable, "-P", "-c", start, json.dumps(sys.path), *sys.argv[1:]]
    # A terminal's Ctrl-C reaches the child too, which ends in its own way. (A handler: what is ignored
    # stays so in the child.)
    signal.signal(signal.SIGINT, lambda *_: None)
    with subprocess.Popen(command) as child:
        signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        code = child.wait()
    return code - _OFFSET if code - _OFFSET in _CODES else _failed(code)


def _failed(code: int) -> int:
    print(f"robench: error: {ended_process(code)}", file=sys.stderr, flush=True)
    return _FAILED


def _fork() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    told, telling = os.pipe()
    handled = {getattr(signal, name) for name in _FORWARDED} | {signal.SIGCHLD}
    chld = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, handled)
    parent = os.getpid()
    try:
        child = os.fork()
    except OSError:  # no further process is allowed
        child = 0
    if child:
        os.close(telling)
        os._exit(_ended(child, told, handled))
    if os.getpid() != parent:
        _die_with(parent)
        _told.append(telling)
    signal.signal(signal.SIGCHLD, chld or signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.close(told)


def _die_with(parent: int) -> None:
    # Takes milliseconds to load, which a command that runs a model does not notice.
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SET_PARENTS_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(_FAILED)


def _ended(child: int, told: int, handled: set[signal.Signals]) -> int:
    """Wait for the child, pass signals on, and say with what exit code to end."""
    os.set_blocking(told, False)  # a worker that is left may hold the other end
    said: int | None = None
    end = float("inf")
    while True:
        info = signal.sigtimedwait(handled, _LOOK)
        if said is None:
            with contextlib.suppress(OSError, ValueError):
                said = int(os.read(told, 16))
                end = time.monotonic() + _GRACE
        if info is None:
            if time.monotonic() >= end:
                _say_goes_on()
                os.kill(child, signal.SIGKILL)
                end = float("inf")
        elif info.si_signo == signal.SIGCHLD:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
        elif info.si_code <= 0:  # by a process; a terminal's the child has had itself
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, info.si_signo)
    if said is not None:
        return said
    code = os.waitstatus_to_exitcode(status)
    if -code in handled:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handled)
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return _failed(code)
