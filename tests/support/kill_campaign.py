"""Run an evaluation, stop it at random moments, resume it each time; print what it cost.

``main`` is for a process of its own, of which every run is a fork: it counts the passes and steps of all.

FOLDER/reference holds the unbroken run, FOLDER/0, /1, … the broken ones: when one is complete,
the next begins, until STOPS runs have been stopped, by the signals in turn: KILL, INT (as Ctrl-C
sends it) or TERM. With STOPS 0 or -1, of a shorter suite, until each signal has stopped each attack
of its cascade, or each attack has been stopped by one of them.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from robench.attacks.apgd import APGD
from robench.attacks.fab import FAB
from robench.attacks.square import Square
from robench.datasets import load_dataset
from robench.evaluation.prepared_model import Settings
from robench.evaluation.runner import Silent, evaluate_model
from robench.models import load_model
from robench.models.wrapper import RobenchModel
from robench.records import AttackSpec, Suite
from robench.results import Store


def suite(steps: int, cascade_steps: int, queries: int) -> Suite:
    """An attack of one step, one of many, and a cascade of three attacks."""
    targeted = {"loss": "dlr-targeted", "steps": cascade_steps, "targets": 3}
    return Suite(
        name="campaign",
        attacks=(
            AttackSpec(
                name="fgsm",
                attack="pgd",
                params={"steps": 1, "relative_step_size": 1.0, "random_start": False},
            ),
            AttackSpec(
                name="pgd", attack="pgd", params={"steps": steps, "relative_step_size": 0.1}
            ),
            AttackSpec(
                name="short-aa",
                stages=(
                    AttackSpec(name="apgd-t", attack="apgd", params=targeted),
                    AttackSpec(name="fab-t", attack="fab", params={"steps": 8, "targets": 3}),
                    AttackSpec(name="square", attack="square", params={"queries": queries}),
                ),
            ),
        ),
    )


BATCH = 50
INTERRUPTED = 130
"""Exit status of a run that was interrupted and has saved what it had"""


class Counter:
    """Inputs sent through the model, counted over all forks."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8)

    def add(self, count: int) -> None:
        self._memory[:8] = struct.pack("q", self.value + count)

    @property
    def value(self) -> int:
        return int(struct.unpack("q", self._memory[:8])[0])


class Steps:
    """Steps that an attack has made, counted over all forks, and which attack made the last one."""

    last = Counter()

    def __init__(self, attack: Any, number: int) -> None:
        self.made = Counter()
        step = attack.step

        def counted(*arguments: Any) -> Any:
            self.made.add(1)
            Steps.last.add(number - Steps.last.value)
            return step(*arguments)

        attack.step = counted


class Marks(Silent):
    """Notes the counter when the search of each job begins and ends."""

    def __init__(self, counter: Counter) -> None:
        self.counter = counter
        self.starts: list[int] = []
        self.last_step = 0
        self.outside = 0

    def job_started(self, model: str, attack: str, steps: int, cached: bool) -> None:
        self.starts.append(self.counter.value)
        self.last_step = self.counter.value

    def advanced(self, steps: int) -> None:
        self.last_step = self.counter.value

    def job_finished(self, stored: Any) -> None:
        self.outside += self.counter.value - self.last_step


def run(
    model: RobenchModel, folder: Path, suite: Suite, samples: int, listener: Any = None
) -> None:
    evaluate_model(
        model,
        load_dataset("digits").subset(samples),
        suite,
        store=Store(folder),
        listener=listener,
        settings=Settings(batch_size=BATCH, precision="fp32", snapshot_seconds=0.0),
    )


def child_of(model: RobenchModel, folder: Path, suite: Suite, samples: int) -> int:
    """A fork that makes a run; its process id."""
    # It must not be interrupted before it is ready to save, nor come back as a second parent.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            run(model, folder, suite, samples)
            status = 0
        except KeyboardInterrupt:
            status = INTERRUPTED
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
        finally:
            os._exit(status)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    return child


def wait_for(child: int, steps: Counter, more: int) -> None:
    """Until an attack has made so many more steps, or the child ends."""
    wanted = steps.value + more
    ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while steps.value < wanted and os.waitid(os.P_PID, child, ended) is None:
        time.sleep(0.0005)


def main(folder: Path, stops: int, seed: int, samples: int, signals: list[str]) -> dict[str, Any]:
    torch.set_num_threads(1)
    # Forking a process with threads may hang in general; this one has a single working thread.
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    counter = Counter()
    model = load_model("pgd-at", dataset="digits")
    model.register_forward_pre_hook(lambda _, inputs: counter.add(len(inputs[0])))
    steps = [Steps(attack, number) for number, attack in enumerate((APGD, FAB, Square))]
    # A run is stopped in each attack, and by another signal in each; what was missed comes again.
    plan = [
        (signals[(number + shift) % len(signals)], number)
        for shift in range({0: len(signals), -1: 1}.get(stops, 0))
        for number in range(len(steps))
    ]
    attacks = suite(4, 4, 40) if plan else suite(40, 10, 300)
    marks = Marks(counter)
    start = time.perf_counter()
    run(model, folder / "reference", attacks, samples, marks)
    duration = time.perf_counter() - start
    reference = counter.value
    rng = random.Random(seed)
    stopped, finished, costs = dict.fromkeys(signals, 0), 0, []
    before = counter.value
    while plan or sum(stopped.values()) < stops or finished == 0:
        child = child_of(model, folder / str(finished), attacks, samples)
        name = plan[0][0] if plan else signals[sum(stopped.values()) % len(signals)]
        if plan:
            wait_for(child, steps[plan[0][1]].made, rng.randint(1, 4))
        else:
            time.sleep(rng.uniform(0.0, 0.6 * duration))
        if plan or sum(stopped.values()) < stops:
            os.kill(child, signal.Signals[f"SIG{name}"])
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == INTERRUPTED:
            stopped[name] += 1
            plan = plan[1:] if plan and Steps.last.value == plan[0][1] else plan
        elif os.WEXITSTATUS(status) != 0:
            raise SystemExit("a run failed")
        else:
            finished += 1
            costs.append(counter.value - before)
            before = counter.value
    # The last, unfinished round is completed too.
    run(model, folder / str(finished), attacks, samples)
    costs.append(counter.value - before)
    return {
        "stopped": stopped,
        "rounds": finished + 1,
        "reference": reference,
        "start": marks.starts[0],
        "outside": marks.outside,
        "total": sum(costs),
    }
