"""Workers: searches of one stage side by side, each with models of its own.

Two threads that search on one core each do more than one search whose every operation is split
over two cores: nothing waits for the slower half, and the search's own bookkeeping is shared out
as well. What a search finds does not depend on the samples beside it, so dividing them changes no
result.
"""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from robench.evaluation.adjudicate import Adjudicator
from robench.evaluation.passes import SearchModel
from robench.evaluation.samples import Found
from robench.models.wrapper import RobenchModel

__all__ = ["Crew", "Save", "Shard", "Worker", "worker_count"]

Save = Callable[[Callable[[], dict[str, Any]]], None]
"""Is offered a function that makes a snapshot; decides whether to call it and keep the result."""

_MOST = 4
"""Threads share the interpreter: more of them would wait for each other on small networks"""


@dataclass(frozen=True)
class Worker:
    """What one search uses and no other may use at the same time."""

    model: RobenchModel
    search: SearchModel
    exact: SearchModel
    adjudicator: Adjudicator

    def twin(self) -> Worker:
        """The same modules again, for another thread; parameters and buffers are shared.

        Raises:
            Exception: whatever a module that cannot be copied raises.
        """
        modules = (self.model, *self.search.modules(), *self.exact.modules())
        tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
        return copy.deepcopy(self, {id(tensor): tensor for tensor in tensors})


@dataclass
class Shard:
    """Samples that one engine searches together."""

    rows: Tensor
    """int64 (n′,)"""
    engine: dict[str, Any] | None = None
    """What the engine of an interrupted run left behind"""


Search = Callable[[Worker, Shard, Save], Found]
Merge = Callable[[Shard, Found], None]


class _StoppedError(Exception):
    """Another worker failed, or the user interrupts: no step more."""


@dataclass
class _Turn:
    """Who is where. All of it is read and written with ``changed`` held."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    running: set[int] = field(default_factory=set)
    """Shards that a thread is at"""
    standing: set[int] = field(default_factory=set)
    """Those of them that are between two steps, and stay there while somebody collects"""
    engines: dict[int, Callable[[], dict[str, Any]]] = field(default_factory=dict)
    """Makes the snapshot of each shard that has been begun and is not merged"""
    collecting: bool = False
    stopping: bool = False


class Crew:
    """Searches the shards of one phase and hands over what is found in each.

    Args:
        workers: one for each search at a time. A single one searches in the caller's thread.
        save: is offered a snapshot between any two steps of any engine.
        snapshot: makes one, of the unfinished shards that it is given.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        save: Save | None,
        snapshot: Callable[[list[Shard]], dict[str, Any]],
    ) -> None:
        self.workers = workers
        self._save = save
        self._snapshot = snapshot
        self._turn = _Turn()
        self._shards: list[Shard] = []

    def run(self, shards: Sequence[Shard], search: Search, merge: Merge) -> None:
        """Search all shards; ``merge`` is called for one at a time, in no particular order.

        Raises:
            Exception: whatever a search or ``save`` raises first. The other searches stop after
                the step that they are at, and a snapshot can still be taken.
        """
        self._shards = list(shards)
        self._turn = _Turn()
        for number, shard in enumerate(self._shards):
            if shard.engine is not None:
                self._turn.engines[number] = partial(_given, shard.engine)
        if len(self.workers) == 1 or len(self._shards) == 1:
            for number in range(len(self._shards)):
                self._one(self.workers[0], number, search, merge)
            return
        idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self.workers:
            idle.put(worker)
        count = len(self.workers)
        with _threads_divided(count) as begin, ThreadPoolExecutor(count, initializer=begin) as pool:
            futures = [
                pool.submit(self._with_idle, idle, number, search, merge)
                for number in range(len(self._shards))
            ]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                self._stop(futures)
        failures = [f.exception() for f in futures if not f.cancelled()]
        # What made the others stop comes before their stopping.
        for failure in sorted(failures, key=lambda e: isinstance(e, _StoppedError)):
            if failure is not None:
                raise failure

    def _with_idle(
        self, idle: queue.SimpleQueue[Worker], number: int, search: Search, merge: Merge
    ) -> None:
        worker = idle.get()
        try:
            self._one(worker, number, search, merge)
        finally:
            idle.put(worker)

    def _one(self, worker: Worker, number: int, search: Search, merge: Merge) -> None:
        turn, shard = self._turn, self._shards[number]
        with turn.changed:
            turn.running.add(number)
        try:
            found = search(worker, shard, lambda make: self._between_steps(number, make))
            with turn.changed:
                # At once: a snapshot must have a shard either unfinished or merged.
                merge(shard, found)
                turn.engines.pop(number, None)
        except BaseException:
            turn.stopping = True
            raise
        finally:
            with turn.changed:
                turn.running.discard(number)
                turn.standing.discard(number)
                turn.changed.notify_all()
        self._offer()

    def _between_steps(self, number: int, make: Callable[[], dict[str, Any]]) -> None:
        turn = self._turn
        with turn.changed:
            turn.engines[number] = make
            turn.standing.add(number)
            turn.changed.notify_all()
            self._offer()
            if turn.stopping:
                raise _StoppedError
            turn.standing.discard(number)

    def _offer(self) -> None:
        turn = self._turn
        with turn.changed:
            while turn.collecting:
                turn.changed.wait()
            if self._save is None or turn.stopping:
                return
            try:
                self._save(self.collect)
            except BaseException:
                turn.stopping = True  # before anybody else has the turn
                raise

    def collect(self) -> dict[str, Any]:
        """A snapshot of the whole phase, once every search is between two steps."""
        turn = self._turn
        with turn.changed:
            turn.collecting = True
            try:
                while not turn.running <= turn.standing:
                    turn.changed.wait()
                return self._snapshot(
                    [Shard(self._shards[n].rows, make()) for n, make in turn.engines.items()]
                )
            finally:
                turn.collecting = False
                turn.changed.notify_all()

    def _stop(self, futures: Sequence[Future[None]]) -> None:
        with self._turn.changed:
            self._turn.stopping = any(not future.done() for future in futures)
        for future in futures:
            future.cancel()


def worker_count(device: torch.device, wanted: int | None) -> int:
    """How many searches to run side by side.

    Args:
        device: where the model runs.
        wanted: the user's number; None: one for each of a CPU's threads, four at most, elsewhere
            one.
    """
    if wanted is not None:
        return wanted
    return min(torch.get_num_threads(), _MOST) if device.type == "cpu" else 1


def _given(state: dict[str, Any]) -> dict[str, Any]:
    return state


@contextmanager
def _threads_divided(workers: int) -> Iterator[Callable[[], None]]:
    """What each worker's thread calls first, so that together they use as many cores as before."""
    threads = torch.get_num_threads()
    share = max(1, threads // workers)
    try:
        yield lambda: torch.set_num_threads(share)
    finally:
        # Threads that are made later take over what was set last.
        torch.set_num_threads(threads)
