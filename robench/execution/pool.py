"""Executors: tasks are given to workers, and what each came to is given back as it comes.

What a task comes to does not depend on who does it, so dividing changes no result. Workers do their
tasks and report; merging, saving and showing progress are left to whoever asked. Where there is one
worker only, it is the process itself.
"""

from __future__ import annotations

import multiprocessing.connection
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, Generic, TypeVar

from robench.execution.scheduling import Taken
from robench.execution.worker import Call, Progress, Worker

_PATIENCE = 60.0
"""Seconds that a worker has to end its step when it is asked for a snapshot or to stop"""
_LOOK = 30.0
"""Seconds after which workers that may hang are looked at"""


AboutT = TypeVar("AboutT")


@dataclass(eq=False)
class Task(Generic[AboutT]):
    """Something to be done in one go, such as the search for some samples."""

    about: AboutT
    """What it is for, as which samples"""
    state: dict[str, Any] | None = None
    """A snapshot of what has been done of it, where there is one"""
    size: float = 1.0
    """How much it is beside the others, as far as that is known"""


Results = Generator[tuple[Task[AboutT], dict[str, Any]], None, None]


class Executor(ABC):
    """Somewhere to do tasks: so many at a time."""

    size: int
    """Tasks at a time"""

    def run(
        self,
        tasks: Sequence[Task[AboutT]],
        prepare: Callable[[Task[AboutT], int], Call],
        progress: Progress | None,
        save: Callable[[Callable[[], list[Task[AboutT]]]], None],
        stalled: Callable[[], None] = lambda: None,
    ) -> Results[AboutT]:
        """Do all tasks; each is given with what it came to, in no particular order.

        To be closed when the caller stops early: the other tasks then end after the step that they
        are at, and ``save``'s function still tells what they came to.

        Args:
            tasks: what to do.
            prepare: says how a task is done, by which worker; called in this process, which reads
                files that are open.
            progress: is told about steps.
            save: is offered the unfinished tasks between any two steps.
            stalled: is told of a worker that was ended because it made no progress. Its task is done
                in this process, and no more workers are started: a thread pool of a model's own,
                which a fork lacks, would hang in every one.

        Raises:
            ModelError: a model's code ended a worker's process by itself.
            Exception: whatever a task or ``save`` raises.
        """
        return self._results(_Run(list(tasks), prepare, progress, save, stalled))

    @abstractmethod
    def _results(self, run: _Run[AboutT]) -> Results[AboutT]:
        """Do all of a run's tasks."""


@dataclass(frozen=True)
class ThisProcess(Executor):
    """No other worker."""

    size: int = 1

    def _results(self, run: _Run[AboutT]) -> Results[AboutT]:
        return run.at_home()


class Workers(Executor):
    """Others, who each do a task at a time; a single one's tasks are done in this process."""

    @property
    def patience(self) -> float:
        """Seconds without a step after which a worker counts as hanging, and is ended."""
        return inf

    @abstractmethod
    def start(self, number: int, call: Call) -> Worker:
        """Have worker ``number``, from 0, make a call."""

    def twice(self, running: Sequence[Taken], done: Sequence[Taken]) -> int | None:
        """Which of the tasks that one worker is at, to give to an idle one too: what ends first counts.
        It is asked where none is left to be begun."""
        return None

    def _results(self, run: _Run[AboutT]) -> Results[AboutT]:
        if min(self.size, len(run.tasks)) > 1:
            yield from run.by_workers(self)
        yield from run.at_home()


class _Run(Generic[AboutT]):
    """Some tasks, while they are done."""

    def __init__(
        self,
        tasks: list[Task[AboutT]],
        prepare: Callable[[Task[AboutT], int], Call],
        progress: Progress | None,
        save: Callable[[Callable[[], list[Task[AboutT]]]], None],
        stalled: Callable[[], None],
    ) -> None:
        self.tasks = tasks
        self.prepare = prepare
        self.progress = progress
        self.save = save
        self.stalled = stalled
        self.workers: dict[int, tuple[Task[AboutT], Worker]] = {}
        self.done: list[Taken] = []

    def at_home(self) -> Results[AboutT]:
        """Do what is left in this process."""
        for task in list(self.tasks):
            result = self.prepare(task, 0)(self._report, partial(self._stepped, task))
            yield task, result
            self._forget(task)

    def _report(self, steps: int) -> None:
        if self.progress is not None:
            self.progress(steps)

    def _stepped(self, task: Task[AboutT], snapshot: Callable[[], dict[str, Any]]) -> None:
        """This process's own task is between two steps."""

        def unfinished() -> list[Task[AboutT]]:
            task.state = snapshot()
            return self._unfinished()

        self.save(unfinished)

    def _forget(self, task: Task[AboutT]) -> None:
        self.tasks = [other for other in self.tasks if other is not task]
        task.state = None  # as large as the samples themselves
        self.save(self._unfinished)

    def _unfinished(self) -> list[Task[AboutT]]:
        """The tasks that were begun, each as it is between two steps."""
        # Who has owed an answer since the last time may be hanging: it is not waited for again.
        asked = [(*pair, _PATIENCE if pair[1].ask() else 0.0) for pair in self.workers.values()]
        for task, worker, seconds in asked:
            while worker.asked and not worker.over and worker.pipe.poll(seconds):
                self._hear(task, worker)
        return [task for task in self.tasks if task.state is not None]

    def _hear(self, task: Task[AboutT], worker: Worker) -> None:
        before = self._steps(task)
        worker.steps += worker.hear()
        self._report(self._steps(task) - before)
        if worker.state is not None:
            task.state, worker.state = worker.state, None

    def _steps(self, task: Task[AboutT]) -> int:
        """Of whoever has come farthest."""
        return max(worker.steps for other, worker in self.workers.values() if other is task)

    def _next(self, waiting: list[Task[AboutT]], executor: Workers) -> Task[AboutT] | None:
        """What an idle worker is to do."""
        if waiting or not self.workers:
            return waiting.pop(0) if waiting else None
        held = Counter(id(task) for task, _ in self.workers.values())
        alone = [pair for pair in self.workers.values() if held[id(pair[0])] == 1]
        running = [Taken(worker.seconds, task.size) for task, worker in alone]
        at = executor.twice(running, self.done)
        return None if at is None else alone[at][0]

    def _end_others(self, task: Task[AboutT], worker: Worker) -> None:
        """One worker has done the task: whoever else is at it stops before anything is made of it."""
        self.done.append(Taken(worker.seconds, task.size))
        for number, (other, too) in list(self.workers.items()):
            if other is task and too is not worker:
                too.end()
                del self.workers[number]

    def by_workers(self, executor: Workers) -> Results[AboutT]:
        """Have workers do the tasks; what one left undone by its death is left."""
        waiting = list(self.tasks)
        look = min(_LOOK, executor.patience / 10)
        try:
            while waiting or self.workers:
                for number in [n for n in range(executor.size) if n not in self.workers]:
                    if (next_one := self._next(waiting, executor)) is None:
                        break
                    started = executor.start(number, self.prepare(next_one, number))
                    self.workers[number] = next_one, started
                pipes = [worker.pipe for _, worker in self.workers.values()]
                ready = multiprocessing.connection.wait(pipes, look)
                for number, (task, worker) in list(self.workers.items()):
                    if number not in self.workers:
                        continue  # somebody else was quicker at the same
                    if worker.pipe in ready:
                        self._hear(task, worker)
                    elif worker.silent() > executor.patience:
                        self.stalled()
                        waiting = []
                        worker.over = True
                    if worker.result is not None:
                        self._end_others(task, worker)
                        yield task, worker.result
                        self._forget(task)
                    if worker.over:
                        worker.end()
                        del self.workers[number]
                    if worker.failure is not None:
                        raise worker.failure
                self.save(self._unfinished)
        except BaseException:
            # What the others have reached is kept for a last snapshot. Should that fail too, the
            # failure that came first is what matters, and their tasks go on from before.
            with suppress(Exception):
                self._unfinished()
            raise
        finally:
            for _, worker in self.workers.values():
                worker.end()
            self.workers = {}
