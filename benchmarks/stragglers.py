"""How busy 4 to 256 workers are kept, by simulation: slow machines, lost calls, the end of a job.

What a sample takes is measured: passes of each sample in stored records of a model (``--results``), drawn
again and again until there are ``--n``. Parts, their order, and which are given to a second worker are
decided by :mod:`robench.execution.scheduling`, as ``--executor ray`` has it. Assumed, and said in the table:
how many passes a second a worker makes; seconds before a call's first pass; one machine in twenty at half
speed and one in a hundred at a fifth; one call in two hundred lost on its way and made again.

Efficiency is the work, at each machine's own speed, over what all machines could have done until the last
record was there. Of several seeds the mean. Takes a minute; run by hand::

    python benchmarks/stragglers.py --write
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import statistics
import sys
from collections import Counter
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robench.execution.scheduling import Taken, largest_first, latest, parts_of
from robench.results import Store

RESULT = Path(__file__).parent / "results" / "stragglers.md"
WORKERS = (4, 16, 64, 256)
SLOW = ((0.01, 0.2), (0.05, 0.5))
"""Share of the machines, and their speed"""
LOST = 1 / 200


@dataclass(frozen=True)
class Rules:
    """What the scheduler does."""

    name: str
    by_share: bool = True
    """The number of a job's parts"""
    sort: bool = True
    twice: bool = False
    """A late part is given to a second worker too"""


RULES = (
    Rules("four parts a worker of each job, of 64 samples at least", by_share=False, sort=False),
    Rules("by the job's share, largest first"),
    Rules("and late parts twice, as it is", twice=True),
)
_LOOK = 30.0
"""Seconds between two looks for what is late"""


@dataclass(frozen=True, eq=False)
class Call:
    """A part of a job."""

    seconds: float
    """At full speed"""
    estimate: float
    """What is known of it beforehand"""


@dataclass(frozen=True)
class Jobs:
    """Passes of each sample, by attack."""

    passes: dict[str, NDArray[np.float64]]
    n: int
    rate: float
    """Passes a second"""
    start: float
    """Seconds before the first pass of a worker's first call"""
    again: float
    """And of a later one"""

    def calls(self, workers: int, rules: Rules, draw: np.random.Generator) -> list[Call]:
        """All parts of all jobs."""
        found = []
        total = sum(float(passes.max()) for passes in self.passes.values())
        for passes in self.passes.values():
            share = float(passes.max()) / total
            count = parts_of(self.n, share, workers, 32)
            if not rules.by_share:  # as it was once
                count = max(1, min(self.n // 64, 4 * workers))
            taken = draw.choice(passes, self.n)
            for part in range(count):
                work = float(taken[part::count].sum()) / self.rate
                found.append(Call(work, float(passes.max()) * self.n / count))
        return largest_first(found, lambda call: call.estimate) if rules.sort else found


class Simulation:
    """One run."""

    def __init__(self, jobs: Jobs, workers: int, rules: Rules, seed: int) -> None:
        self.draw = np.random.default_rng(seed)
        dice, self.speeds = self.draw.random(workers), np.ones(workers)
        for share, speed in sorted(SLOW, reverse=True):
            self.speeds[dice < share] = speed
        self.jobs, self.rules = jobs, rules
        self.waiting = jobs.calls(workers, rules, self.draw)
        self.total, self.left = sum(call.seconds for call in self.waiting), len(self.waiting)
        self.idle, self.begun, self.now = list(range(workers)), set[int](), 0.0
        self.number = itertools.count()
        self.events: list[tuple[float, int, int | None]] = []
        """When, in order, and which worker has ended; None: it is time to look"""
        self.at_work: dict[int, tuple[Call, float, bool]] = {}
        """By worker: which call, since when, and whether it is lost"""
        self.done: list[Taken] = []

    def efficiency(self) -> float:
        """Of the machines, until the last call has ended."""
        while self.left:
            self._assign()
            self.now, _, worker = heapq.heappop(self.events)
            if worker in self.at_work:
                self._end(worker)
        return self.total / (self.now * float(self.speeds.sum()))

    def _assign(self) -> None:
        while self.idle and (call := self._next()) is not None:
            worker = self.idle.pop(0)
            start = self.jobs.again if worker in self.begun else self.jobs.start
            self.begun.add(worker)
            seconds = (start + call.seconds) / self.speeds[worker]
            lost = bool(self.draw.random() < LOST)
            seconds *= self.draw.random() if lost else 1.0
            self.at_work[worker] = call, self.now, lost
            heapq.heappush(self.events, (self.now + seconds, next(self.number), worker))
        if self.idle and self.rules.twice and all(e[2] is not None for e in self.events):
            heapq.heappush(self.events, (self.now + _LOOK, next(self.number), None))

    def _next(self) -> Call | None:
        if self.waiting or not self.rules.twice:
            return self.waiting.pop(0) if self.waiting else None
        held = Counter(id(call) for call, _, _ in self.at_work.values())
        alone = [(c, since) for c, since, _ in self.at_work.values() if held[id(c)] == 1]
        at = latest([Taken(self.now - since, c.estimate) for c, since in alone], self.done)
        return None if at is None else alone[at][0]

    def _end(self, worker: int) -> None:
        call, since, lost = self.at_work[worker]
        same = [w for w, (other, _, _) in self.at_work.items() if other is call]
        if lost:
            self._free(worker)
            if len(same) == 1:
                self.waiting.insert(0, call)
            return
        self.left -= 1
        self.done.append(Taken(self.now - since, call.estimate))
        for one in same:
            self._free(one)

    def _free(self, worker: int) -> None:
        """It is idle; what it was at does not end any more."""
        del self.at_work[worker]
        self.events = [event for event in self.events if event[2] != worker]
        heapq.heapify(self.events)
        self.idle.append(worker)


def measured(results: Path, model: str) -> dict[str, NDArray[np.float64]]:
    """Passes of every sample, by attack."""
    found = {}
    for stored in Store(results).records():
        if stored.record.model.name == model and stored.record.part is None:
            table = stored.table[["forwards", "backwards"]].astype(float)
            found[stored.record.attack.name] = table.sum(axis=1).to_numpy()
    if not found:
        raise SystemExit(f"{results} has no records of {model}")
    return found


def main() -> int:
    """Simulate, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--model", default="pgd-at")
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument("--rates", type=float, nargs="+", default=[400.0, 40.0])
    parser.add_argument("--start", type=float, default=20.0)
    parser.add_argument("--again", type=float, nargs="+", default=[20.0, 1.0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    options = parser.parse_args()
    passes = measured(options.results, options.model)
    sections = []
    for rate, again in itertools.product(options.rates, options.again):
        jobs = Jobs(passes, options.n, rate, options.start, again)
        hours = sum(float(np.mean(p)) for p in passes.values()) * options.n / rate / 3600
        lines = [
            f"{rate:g} passes a second: {hours:.0f} hours of one worker; {again:g} s before the first pass of a "
            "worker's later calls",
            "",
            "| " + " | ".join(["scheduler", *(f"{count} workers" for count in WORKERS)]) + " |",
            "|---" + "|---:" * len(WORKERS) + "|",
        ]
        for rules in RULES:
            cells = [_cell(jobs, workers, rules, options.seeds) for workers in WORKERS]
            lines.append(f"| {rules.name} | " + " | ".join(cells) + " |")
        sections.append("\n".join(lines))
    text = "\n\n".join(sections)
    print(text)
    if options.write:
        RESULT.write_text(_page(text, options))
    return 0


def _cell(jobs: Jobs, workers: int, rules: Rules, seeds: int) -> str:
    found = [Simulation(jobs, workers, rules, seed).efficiency() for seed in range(seeds)]
    return f"{statistics.mean(found):.2f} (worst {min(found):.2f})"


def _page(text: str, options: argparse.Namespace) -> str:
    return f"""# How busy many workers are kept

`python benchmarks/stragglers.py {" ".join(sys.argv[1:])}`, {date.today()}

A simulation of {options.n:,} samples against the attacks of `standard`, with the passes that each sample of
`{options.model}` took ([`results`](../../results)). Efficiency, 1 being all machines at work at their own speed all
the time: the mean of {options.seeds} seeds, and the worst. {options.start:g} s pass before the first pass of a
worker's first call, and as long before that of a later one on GPUs, where each call is a process of its own; processes
of CPUs are used again. One machine in twenty has half the speed and one in a hundred a fifth, one call in two hundred
is lost.

{text}

What keeps it below 0.9 with 64 workers and more: a machine of half the speed that begins a part near the end is waited
for, or the part is made a second time from its beginning. And starts: fourteen hours are 200 s for each of 256
workers, of which six starts of 20 s take a good share.
"""


if __name__ == "__main__":
    sys.exit(main())
