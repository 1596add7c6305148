"""The worker pool: searches of one stage side by side, each in a process of its own.

Two processes that search on one core each do more than one whose every operation is split over
two cores: nothing waits for the slower half, and the search's own bookkeeping is shared out as
well. What a search finds does not depend on the samples beside it, so dividing them changes no
result.

The processes are forks of this one: they have the models, the data and the attack without a copy.
They search and report; merging, saving and showing progress are the parent's. Where forking is not
to be had, or not safe, there is one worker: the process itself.
"""

from __future__ import annotations

import io
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.context import ForkProcess
from typing import Any

import torch
from torch import Tensor

from robench.errors import ended_process
from robench.evaluation.samples import SearchResult
from robench.evaluation.search import Progress, Save

_PATIENCE = 60.0
"""Seconds that a worker has to end its step when it is asked for a snapshot or to stop"""
_STALLED = 300.0
"""Seconds without a step after which a worker counts as hanging, and is ended"""
_REHEARSAL, _SLOWER = 20.0, 50.0
"""Seconds, and times the parent's, that a fork has for a call before it counts as hanging"""


@dataclass
class Shard:
    """Samples that are searched together."""

    rows: Tensor
    """int64 (n′,)"""
    search: dict[str, Any] | None = None
    """A snapshot of the search, where there is one"""


SearchCall = Callable[[Progress, Save], SearchResult]
"""Searches a shard whose samples are loaded: files that are open are read in one process only"""

Results = Generator[tuple[Shard, SearchResult], None, None]


@dataclass
class WorkerPool:
    """Searches the shards of one stage run."""

    size: int
    """Workers; one searches in this process"""
    prepare: Callable[[Shard], SearchCall]
    """Loads a shard's samples"""
    progress: Progress | None
    """Is told about steps"""
    save: Callable[[Callable[[], list[Shard]]], None]
    """Is offered the unfinished shards between any two steps"""
    stalled: int = field(default=0, init=False)
    """Workers that were ended because they made no progress"""
    _shards: list[Shard] = field(default_factory=list, init=False)
    _workers: list[_Worker] = field(default_factory=list, init=False)

    def _report(self, steps: int) -> None:
        if self.progress is not None:
            self.progress(steps)

    def run(self, shards: Sequence[Shard]) -> Results:
        """Search all shards; each is given with what was found in it, in no particular order.

        A worker that is killed, as for want of memory, has its shard searched here, and so has one
        that makes no step in five minutes, which is ended; then no more are forked: a thread pool
        of the model's own, which a fork lacks, would hang in every one. To be closed when the
        caller stops early: the other searches then end after the step that they are at, and
        :meth:`unfinished` still tells what they came to.

        Raises:
            ModelError: the model's code ended a worker's process by itself.
            Exception: whatever a search or ``save`` raises.
        """
        self._shards = list(shards)
        if min(self.size, len(shards)) > 1:
            yield from self._run_workers()
        for shard in list(self._shards):
            result = self.prepare(shard)(self._report, partial(self._stepped, shard))
            yield shard, result
            self._forget(shard)

    def _stepped(self, shard: Shard, snapshot: Callable[[], dict[str, Any]]) -> None:
        """This process's own search is between two steps."""

        def unfinished() -> list[Shard]:
            shard.search = snapshot()
            return self.unfinished()

        self.save(unfinished)

    def _forget(self, shard: Shard) -> None:
        self._shards = [other for other in self._shards if other is not shard]
        shard.search = None  # as large as the shard itself
        self.save(self.unfinished)

    def unfinished(self) -> list[Shard]:
        """The shards that were begun, each as it is between two steps."""
        # Who has owed an answer since the last time may be hanging: it is not waited for again.
        patience = [_PATIENCE if worker.ask() else 0.0 for worker in self._workers]
        for worker, seconds in zip(self._workers, patience, strict=True):
            while worker.asked and not worker.over and worker.pipe.poll(seconds):
                self._report(worker.hear())
        return [shard for shard in self._shards if shard.search is not None]

    def _run_workers(self) -> Results:
        waiting = list(self._shards)
        try:
            while waiting or self._workers:
                while waiting and len(self._workers) < self.size:
                    shard = waiting.pop(0)
                    self._workers.append(_Worker(shard, self.prepare(shard)))
                pipes = [worker.pipe for worker in self._workers]
                ready = multiprocessing.connection.wait(pipes, _STALLED / 10)
                for worker in list(self._workers):
                    if worker.pipe in ready:
                        self._report(worker.hear())
                    elif worker.silent() > _STALLED:
                        self.stalled += 1
                        waiting = []
                        worker.over = True
                    if worker.result is not None:
                        yield worker.shard, worker.result
                        self._forget(worker.shard)
                    if worker.over:
                        worker.end()
                        self._workers.remove(worker)
                    if worker.failure is not None:
                        raise worker.failure
                self.save(self.unfinished)
        except BaseException:
            # What the others have reached is kept for a last snapshot. Should that fail too, the
            # failure that came first is what matters, and their shards go on from before.
            with suppress(Exception):
                self.unfinished()
            raise
        finally:
            for worker in self._workers:
                worker.end()
            self._workers = []


class _Worker:
    """A forked process that searches one shard, as the parent sees it."""

    def __init__(self, shard: Shard, search: SearchCall) -> None:
        self.shard = shard
        self.result: SearchResult | None = None
        self.failure: Exception | None = None
        self.over = False
        self.asked = False
        self._died = False
        self._hearing = False
        self._heard = time.monotonic()
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = _forked(_work, self.pipe, theirs, search, os.getpid())
        theirs.close()

    def silent(self) -> float:
        """Seconds since its last word."""
        return time.monotonic() - self._heard

    def ask(self) -> bool:
        """Ask for the state between two steps, if there is any sense in asking; whether it was."""
        # An interruption while a message was read may have left the rest of it in the pipe.
        if self.over or self._hearing or self.asked:
            return False
        with suppress(OSError):
            self.pipe.send("state")
            self.asked = True
        return self.asked

    def hear(self) -> int:
        """Take one message; returns the steps that it reports."""
        self._hearing = True
        self._heard = time.monotonic()
        try:
            kind, content = self.pipe.recv()
        except (EOFError, OSError):
            self._died = not self.over  # without a word: the shard is still to be done
            self.over = True
            return 0
        self._hearing = False
        if kind == "steps":
            return int(content)
        if kind == "state":
            self.asked = False
            self.shard.search = unpacked(content)
        elif kind == "result":
            self.result = SearchResult(**unpacked(content))
        else:
            self.failure = content
        self.over = kind in ("result", "failure")
        return 0

    def end(self) -> None:
        """Not a step more."""
        self.pipe.close()
        # One that has said all ends by itself in a moment.
        said_all = self.result is not None or self.failure is not None or self._died
        self.process.join(1 if said_all else 0)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        code = self.process.exitcode
        # Less than 0: a signal, as of a system without memory left.
        if self._died and code is not None and code >= 0:
            self.failure = ended_process(code)
        self.process.close()


def _work(
    parents: multiprocessing.connection.Connection,
    pipe: multiprocessing.connection.Connection,
    search: SearchCall,
    parent: int,
) -> None:
    """The forked process: search one shard, and report."""
    _init_worker()
    parents.close()
    done = 0

    def progress(steps: int) -> None:
        nonlocal done
        done += steps

    def stepped(snapshot: Callable[[], dict[str, Any]]) -> None:
        nonlocal done
        if os.getppid() != parent:
            raise EOFError
        if done:
            pipe.send(("steps", done))
            done = 0
        while pipe.poll():
            pipe.recv()
            pipe.send(("state", packed(snapshot())))

    try:
        result = search(progress, stepped)
        pipe.send(("steps", done))
        pipe.send(("result", packed(dict(vars(result)))))
    except (EOFError, ConnectionError):
        return  # nobody listens any more
    except SystemExit as end:
        pipe.send(("failure", ended_process(end.code)))
    except Exception as error:
        pipe.send(("failure", _portable(error)))


def _portable(error: Exception) -> Exception:
    """The error as it can be sent, with the traceback that cannot."""
    try:
        portable: Exception = pickle.loads(pickle.dumps(error))
    except Exception:
        portable = RuntimeError(f"{type(error).__name__}: {error}")
    portable.add_note("".join(traceback.format_exception(error)))
    return portable


def packed(content: Any) -> bytes:
    """Plain data and tensors, for a pipe or a file."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def unpacked(content: bytes) -> Any:
    """What :func:`packed` was given; it can run no code."""
    return torch.load(io.BytesIO(content), weights_only=True)


def worker_count(device: torch.device, wanted: int | None) -> int:
    """How many searches to run side by side: as ``wanted``, else one a thread of torch's.

    One wherever a fork could not search: off the CPU, where there is no fork, in a process that may
    have an accelerator's threads, or that is some other program's worker.
    """
    safe = (
        device.type == "cpu"
        and sys.platform.startswith("linux")
        and not torch.accelerator.is_available()
        and not multiprocessing.current_process().daemon
    )
    if not safe:
        return 1
    return torch.get_num_threads() if wanted is None else wanted


def _forked(target: Callable[..., None], *arguments: object) -> ForkProcess:
    """A copy of this process that calls ``target`` and ends; started, and ended with its parent."""
    process = multiprocessing.get_context("fork").Process(
        target=target, args=arguments, daemon=True
    )
    with warnings.catch_warnings():
        # Python warns of every fork with threads about; those of OpenMP sleep, and the child does
        # without them.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    return process


def _init_worker() -> None:
    """What every fork does first."""
    # Ctrl-C reaches the whole group; the parent asks for what it needs.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # More than one would wait for threads of OpenMP that a fork does not bring along.
    torch.set_num_threads(1)


def survives_fork(call: Callable[[], object]) -> bool:
    """Whether a fork can make the call as well.

    Libraries with threads of their own may hang there: the call is made here, then in a fork,
    which gets many times as long.
    """
    started = time.perf_counter()
    call()
    patience = _REHEARSAL + _SLOWER * (time.perf_counter() - started)
    process = _forked(_rehearse, call)
    process.join(patience)
    done = process.exitcode == 0
    if process.is_alive():
        process.kill()
        process.join()
    process.close()
    return done


def _rehearse(call: Callable[[], object]) -> None:
    _init_worker()
    try:
        call()
    except Exception:
        sys.exit(1)  # without a traceback that would look like a failure of the run
