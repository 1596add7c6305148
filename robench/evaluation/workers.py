"""Workers: searches of one stage side by side, each in a process of its own.

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
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from robench.evaluation.forks import forked, settle_in
from robench.evaluation.samples import Found

__all__ = ["Crew", "Save", "Search", "Shard", "Tell"]

Save = Callable[[Callable[[], dict[str, Any]]], None]
"""Is offered a function that makes a snapshot; decides whether to call it and keep the result."""

Tell = Callable[[int], None]
"""Called with the number of search steps that were completed or became unnecessary."""

_PATIENCE = 60.0
"""Seconds that a worker has to end its step when it is asked for a snapshot or to stop"""


@dataclass
class Shard:
    """Samples that one engine searches together."""

    rows: Tensor
    """int64 (n′,)"""
    engine: dict[str, Any] | None = None
    """What the engine of an interrupted run left behind"""


Search = Callable[[Tell, Save], Found]
Prepare = Callable[[Shard], Search]
"""Loads a shard's samples: files that are open are read in one process only"""
Merge = Callable[[Shard, Found], None]


class Crew:
    """Searches the shards of one phase and hands over what is found in each.

    Args:
        size: workers; one searches in this process.
        save: is offered a snapshot between any two steps.
        snapshot: makes one, of the unfinished shards that it is given.
        tell: is told about steps; None: nobody is.
    """

    def __init__(
        self,
        size: int,
        save: Save | None,
        snapshot: Callable[[list[Shard]], dict[str, Any]],
        tell: Tell | None,
    ) -> None:
        self.size = size
        self._save = save
        self._snapshot = snapshot
        self._tell: Tell = tell or (lambda _: None)
        self._unfinished: list[Shard] = []
        self._helpers: dict[int, _Helper] = {}

    def run(self, shards: Sequence[Shard], prepare: Prepare, merge: Merge) -> None:
        """Search all shards; ``merge`` is called for one at a time, in no particular order.

        A worker that dies, as for want of memory, has its shard searched here.

        Raises:
            Exception: whatever a search or ``save`` raises. The other searches stop after the step
                that they are at, and a snapshot can still be taken.
        """
        self._unfinished = list(shards)
        self._helpers = {}
        if min(self.size, len(shards)) > 1:
            self._run_helped(shards, prepare, merge)
        for shard in list(self._unfinished):
            found = prepare(shard)(self._tell, partial(self._stepped, shard))
            self._finish(shard, found, merge)

    def _stepped(self, shard: Shard, make: Callable[[], dict[str, Any]]) -> None:
        """This process's own search is between two steps."""

        def collect() -> dict[str, Any]:
            others = [s for s in self._unfinished if s is not shard and s.engine is not None]
            return self._snapshot([Shard(shard.rows, make()), *others])

        if self._save is not None:
            self._save(collect)

    def _finish(self, shard: Shard, found: Found, merge: Merge) -> None:
        merge(shard, found)
        shard.engine = None  # as large as the shard itself
        self._unfinished = [other for other in self._unfinished if other is not shard]
        if self._save is not None:
            # A snapshot must not hold the last step of what is merged.
            self._save(self.collect)

    def _run_helped(self, shards: Sequence[Shard], prepare: Prepare, merge: Merge) -> None:
        waiting = list(enumerate(shards))
        try:
            while waiting or self._helpers:
                while waiting and len(self._helpers) < self.size:
                    number, shard = waiting.pop(0)
                    self._helpers[number] = _Helper(shard, prepare(shard))
                self._listen(merge)
        except BaseException:
            self._leave_whole()
            raise
        finally:
            for helper in self._helpers.values():
                helper.end()
            self._helpers = {}

    def _listen(self, merge: Merge) -> None:
        """Take what the helpers have to say, and wait for it if nobody says anything."""
        pipes = [helper.end_of_pipe for helper in self._helpers.values()]
        ready = multiprocessing.connection.wait(pipes)
        for number, helper in list(self._helpers.items()):
            if helper.end_of_pipe not in ready:
                continue
            self._hear(helper)
            if helper.found is not None:
                self._finish(helper.shard, helper.found, merge)
            if helper.over:
                helper.end()
                del self._helpers[number]
            if helper.failure is not None:
                raise helper.failure
        if self._save is not None:
            self._save(self.collect)

    def _hear(self, helper: _Helper) -> None:
        steps = helper.hear()
        if steps:
            self._tell(steps)

    def collect(self) -> dict[str, Any]:
        """A snapshot of the whole phase, with every search between two steps."""
        asked = [helper for helper in self._helpers.values() if helper.ask()]
        for helper in asked:
            while helper.asked and not helper.over and helper.end_of_pipe.poll(_PATIENCE):
                self._hear(helper)
        return self._snapshot([shard for shard in self._unfinished if shard.engine is not None])

    def _leave_whole(self) -> None:
        """Before the helpers are ended: what they have reached is kept for a last snapshot."""
        try:
            self.collect()
        except Exception:
            # The failure that ended the phase is what matters; the shards begin anew.
            return


class _Helper:
    """A forked process that searches one shard, as the parent sees it."""

    def __init__(self, shard: Shard, search: Search) -> None:
        self.shard = shard
        self.found: Found | None = None
        self.failure: Exception | None = None
        self.over = False
        self.asked = False
        self.end_of_pipe, theirs = multiprocessing.Pipe()
        self.process = forked(_help, self.end_of_pipe, theirs, search, os.getpid())
        theirs.close()

    def ask(self) -> bool:
        """Ask for the state between two steps; False if nothing is left to ask for."""
        if self.over:
            return False
        try:
            self.end_of_pipe.send("state")
        except OSError:
            return False
        self.asked = True
        return True

    def hear(self) -> int:
        """Take one message; returns the steps that it reports."""
        try:
            kind, content = self.end_of_pipe.recv()
        except (EOFError, OSError):
            self.over = True  # it died; the shard is still to be done
            return 0
        if kind == "steps":
            return int(content)
        if kind == "state":
            self.asked = False
            self.shard.engine = _unpacked(content)
        elif kind == "found":
            self.found = Found(**_unpacked(content))
        else:
            self.failure = content
        self.over = kind in ("found", "failure")
        return 0

    def end(self) -> None:
        """Not a step more."""
        self.end_of_pipe.close()
        self.process.join(0 if not self.over else 1)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()


def _help(
    parents: multiprocessing.connection.Connection,
    pipe: multiprocessing.connection.Connection,
    search: Search,
    parent: int,
) -> None:
    """The forked process: search one shard, and report."""
    settle_in()
    parents.close()
    told = 0

    def tell(steps: int) -> None:
        nonlocal told
        told += steps

    def stepped(make: Callable[[], dict[str, Any]]) -> None:
        nonlocal told
        if os.getppid() != parent:
            raise EOFError
        if told:
            pipe.send(("steps", told))
            told = 0
        while pipe.poll():
            pipe.recv()
            pipe.send(("state", _packed(make())))

    try:
        found = search(tell, stepped)
        pipe.send(("steps", told))
        pipe.send(("found", _packed(dict(vars(found)))))
    except (EOFError, ConnectionError):
        return  # nobody listens any more
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


def _packed(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _unpacked(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), weights_only=True)
