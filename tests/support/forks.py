"""Calls in a fork of the test process: as good as a new interpreter where imports don't matter."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any


def in_a_fork(call: Callable[[], Any]) -> Any:
    """What ``call`` returns in a process of its own; it must be picklable.

    Raises:
        AssertionError: the process failed.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(call()))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise AssertionError("the fork failed; what it said is on standard error") from None
    finally:
        process.join()
