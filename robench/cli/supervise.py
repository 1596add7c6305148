"""An exit code that means what it says: a command that runs a model does so in a child.

Code of a model's may end its process with any exit code, 0 among them. So on Linux the process
that was started forks before it loads anything, and waits. It believes an exit code only if the
command itself has told it, at its end; a command that ends without a word has failed. The child
is of the same terminal and process group, so that Ctrl-C, Ctrl-Z and progress bars are as ever;
it dies with its parent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

from robench.errors import ended_process

_FAILED = 2
_FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
_SET_PARENTS_DEATH_SIGNAL = 1  # of Linux' prctl

_told: list[int] = []
"""The file descriptor on which a child tells its exit code"""


def supervise() -> None:
    """Go on in a child; the parent never returns, and ends as the child says that it ended.

    Where it cannot be done, outside Linux or without a further process, this is nothing.
    """
    if not sys.platform.startswith("linux"):
        return
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


def tell(code: int) -> None:
    """The command has come to its own end, with this exit code."""
    for descriptor in _told:
        with contextlib.suppress(OSError):
            os.write(descriptor, b"%d" % code)
    _told.clear()


def _die_with(parent: int) -> None:
    # Takes milliseconds to load, which a command that runs a model does not notice.
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SET_PARENTS_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(_FAILED)


def _ended(child: int, told: int, handled: set[signal.Signals]) -> int:
    """Wait for the child, pass signals on, and say with what exit code to end."""
    while True:
        info = signal.sigwaitinfo(handled)
        if info.si_signo == signal.SIGCHLD:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
        elif info.si_code <= 0:  # by a process; a terminal's the child has had itself
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, info.si_signo)
    os.set_blocking(told, False)  # a worker that is left may hold the other end
    with contextlib.suppress(OSError, ValueError):
        return int(os.read(told, 16))
    code = os.waitstatus_to_exitcode(status)
    asked = {*handled, signal.SIGKILL}
    if -code in asked:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, asked)
        with contextlib.suppress(OSError):  # nobody handles SIGKILL
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    print(f"robench: error: {ended_process(code)}", file=sys.stderr, flush=True)
    return _FAILED
