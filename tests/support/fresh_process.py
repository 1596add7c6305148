"""Calls in processes that have loaded what robench needs without torch and figures, and run nothing yet.

A new interpreter would load it again each time; these are forks of one that did so once.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        *("hypothesis", "pytest", "pyarrow.parquet", "robench.results", "robench.cli.main"),
        "robench.reporting.publish",
    ]
)


def in_a_fresh_process(
    call: Callable[..., Any],
    *arguments: Any,
    folder: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> Any:
    """What ``call(*arguments)`` returns there; function, arguments and answer must be picklable.

    Args:
        call: what is called.
        arguments: with what.
        folder: in which working folder.
        variables: of the environment, beside those that there are.

    Raises:
        AssertionError: the process failed.
    """
    receiver, sender = PROCESSES.Pipe(duplex=False)
    about = (sender, call, arguments, folder, dict(variables or {}))
    process = PROCESSES.Process(target=_answer, args=about)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise AssertionError("the process failed; what it said is on standard error") from None
    finally:
        process.join()


def _answer(
    sender: Connection,
    call: Callable[..., Any],
    arguments: tuple[Any, ...],
    folder: Path | None,
    variables: dict[str, str],
) -> None:
    os.environ.update(variables)
    os.chdir(folder or Path())
    sender.send(call(*arguments))


__all__ = ["PROCESSES", "in_a_fresh_process"]
