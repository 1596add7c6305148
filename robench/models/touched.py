"""What a model touches besides its code and objects while it runs: files, modules, other programs.

The identity of a model (:mod:`robench.models.code_identity`) holds what its code and its objects
say. What the code fetches, by whatever route, is seen when it runs: Python tells of files and
connections that are opened (its audit events), and of calls to the operating system.

What is read while a module is loaded counts for nothing, as its values are looked into; nor do
files of installed packages, what their code asks the system, and the work of torch's compiler.
"""

from __future__ import annotations

import os
import sys
import threading
import types
from typing import Any, NamedTuple

from robench.models.library_code import (
    is_installed,
    is_librarys_file,
    is_of_library,
    is_of_standard_library,
)

_EVENTS = {
    *("open", "mmap.__new__", "ctypes.dlopen", "sqlite3.connect"),
    *("os.listdir", "os.scandir", "os.getxattr", "os.listxattr"),
    *("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen"),
    *("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostname"),
    *("winreg.OpenKey", "winreg.QueryValue", "urllib.Request"),
}
"""What Python tells before it happens (https://docs.python.org/3/library/audit_events.html)"""

_SYSTEM = os.stat.__module__
_NO_QUESTION = {
    *("fspath", "getpid", "getppid", "cpu_count", "sched_getaffinity", "urandom", "times"),
    *("get_terminal_size", "isatty", "write", "close", "dup", "mkdir", "register_at_fork"),
}
"""Calls to the system that tell nothing that could decide an output"""

_ENVIRONMENT = {
    function.__code__
    for name, function in vars(type(os.environ)).items()
    if isinstance(function, types.FunctionType) and not name.startswith(("__set", "__del"))
}
_COMPILER = ("torch._dynamo", "torch._inductor", "torch._functorch", "torch.fx", "triton")

_watching: dict[int, Touched] = {}


class _Asker(NamedTuple):
    """On whose behalf something is asked."""

    name: str
    itself: bool
    """Whether the user's own code asks, through the standard library at most"""


class Touched:
    """A context that notes what this thread's code touches inside.

    Attributes:
        reads: sentences, in order, each once.
        loaded: modules that the user's own code has imported for the first time.
    """

    def __init__(self) -> None:
        self.reads: dict[str, None] = {}
        self.loaded: dict[str, None] = {}

    def __enter__(self) -> Touched:
        _listen()
        self._base: types.FrameType | None = sys._getframe(1)
        self._outer = _watching.get(threading.get_ident())
        _watching[threading.get_ident()] = self
        # A profiler that runs goes on undisturbed; files and connections are seen without it.
        self._profiled = sys.getprofile() is None
        if self._profiled:
            sys.setprofile(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        if self._profiled:
            sys.setprofile(None)
        if self._outer is None:
            del _watching[threading.get_ident()]
        else:
            _watching[threading.get_ident()] = self._outer
        self._base = self._outer = None

    def told(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Python is about to do what an audit event says."""
        what = arguments[0] if arguments else None
        if event == "open":
            flags = arguments[2] if len(arguments) > 2 else 0
            if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR) == os.O_WRONLY:
                return
        if event.startswith(("open", "os.")) and is_librarys_file(what):
            return
        asker = self._asker(sys._getframe(1))
        if asker is None:
            return
        if event == "import":
            if asker.itself:
                self.loaded[str(what)] = None
            return
        shown = os.fsdecode(what) if isinstance(what, (str, bytes)) else ""
        self._note(asker, event, f" of {shown}" if shown else "")

    def _called(self, frame: types.FrameType, event: str, function: Any) -> None:
        if event == "c_call":
            called, name = function.__name__, ""
            if called == "from_file":  # torch's, which opens the file in C++
                name = "torch.from_file"
            elif called not in _NO_QUESTION and getattr(function, "__module__", None) == _SYSTEM:
                name = f"os.{called}"
        else:
            name = "os.environ" if event == "call" and frame.f_code in _ENVIRONMENT else ""
        if name and (asker := self._asker(frame)) is not None and asker.itself:
            self._note(asker, name, "")

    def _note(self, asker: _Asker, by: str, of: str) -> None:
        self.reads[f"what {asker.name} finds by {by}{of}"] = None

    def _asker(self, frame: types.FrameType | None) -> _Asker | None:
        """On whose behalf a frame runs; None: of nobody whose asking counts."""
        users, installed, itself = "", "", True
        while frame is not None and frame is not self._base:
            code, module = frame.f_code, frame.f_globals.get("__name__")
            module = module if isinstance(module, str) else ""
            if code.co_filename.startswith("<frozen importlib") or module == "linecache":
                return None
            if not users and frame.f_globals is not globals():
                library = is_of_library(module)
                if not library and not is_installed(code):
                    users = code.co_qualname
                elif module.startswith(_COMPILER):
                    return None
                elif not library or not is_of_standard_library(module.partition(".")[0]):
                    itself = False
                    installed = installed or ("" if library else code.co_qualname)
            frame = frame.f_back
        name = users or installed
        return _Asker(name, itself and bool(users)) if name else None


def _listen() -> None:
    """Python forgets no audit hook: there is one for the process, which mostly does nothing."""
    if not _listening:
        _listening.append(True)
        sys.addaudithook(_heard)


_listening: list[bool] = []


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and (event in _EVENTS or event == "import"):
        watch = _watching.get(threading.get_ident())
        if watch is not None:
            watch.told(event, arguments)
