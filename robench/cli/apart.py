"""An evaluation in a process of its own, for a gate whose exit code must mean what it says.

Code of a model's may end its process with any exit code, 0 among them, or crash it. So the process
that answers never runs a model: it starts another, hands it the request, and believes only the one
exit code that is kept for a finished evaluation.
"""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading

import typer

from robench.errors import ended_process
from robench.request import Request

COMMAND = "evaluate-apart"
"""The hidden subcommand that the other process runs"""

_FINISHED, _REFUSED, _INTERRUPTED = 79, 2, 130
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from robench.cli.main import main; main()"
)


def evaluate_in_child(request: Request) -> None:
    """Make the records of a request, whose fields are plain data, in another process.

    Raises:
        ModelError: it came to no end of its own.
        typer.Exit: it failed and has said why, or was interrupted.
    """
    # Without -P the working folder's json.py would be the first that it imports.
    command = [sys.executable, "-P", "-c", _START, json.dumps(sys.path), COMMAND]
    # In a session of its own it hears of an interruption once: by the end of its standard input.
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as child:
        assert child.stdin is not None
        try:
            pickle.dump(request, child.stdin)
            child.stdin.flush()
            code = child.wait()
        except BrokenPipeError:
            code = child.wait()
        except KeyboardInterrupt:
            child.stdin.close()
            try:
                child.wait()
            except KeyboardInterrupt:
                child.kill()
            raise
    if code in (_REFUSED, _INTERRUPTED):
        raise typer.Exit(code)
    if code != _FINISHED:
        raise ended_process(code)


def evaluate_apart() -> None:
    """Evaluate the request on standard input, and end with the exit code for it."""
    request: Request = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Loads torch, which commands that only read records do without.
    from robench.api import prepare
    from robench.cli.output import RunDisplay

    prepared = prepare(request)
    with RunDisplay(prepared.jobs) as display:
        prepared.run(display)
    raise typer.Exit(_FINISHED)


def _end_with_parent() -> None:
    # Not by sys.stdin, whose lock a thread must not hold while the interpreter ends.
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGINT)
