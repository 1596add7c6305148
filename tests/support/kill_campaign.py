"""Run an evaluation, kill it at random moments, resume it each time; print what it cost.

A process of its own, so that torch is imported once and every run is a fork of it::

    python kill_campaign.py FOLDER KILLS SEED

FOLDER/reference holds the unbroken run, FOLDER/0, /1, … the broken ones: when one is complete,
the next begins, until KILLS kills have been survived.
"""

from __future__ import annotations

import json
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

from robench.datasets import load_dataset
from robench.evaluation.runner import Silent, evaluate_model
from robench.evaluation.settings import Settings
from robench.models import load_model
from robench.models.wrapper import RobenchModel
from robench.records import AttackSpec, Suite
from robench.results import Store

SUITE = Suite(
    name="campaign",
    attacks=(
        AttackSpec(
            name="fgsm",
            attack="pgd",
            params={"steps": 1, "relative_step_size": 1.0, "random_start": False},
        ),
        AttackSpec(name="pgd-40", attack="pgd", params={"steps": 40, "relative_step_size": 0.1}),
    ),
)
SAMPLES, BATCH = 200, 50


class Counter:
    """Inputs sent through the model, counted over all forks."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8)

    def add(self, count: int) -> None:
        self._memory[:8] = struct.pack("q", self.value + count)

    @property
    def value(self) -> int:
        return int(struct.unpack("q", self._memory[:8])[0])


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


def run(model: RobenchModel, folder: Path, listener: Any = None) -> None:
    evaluate_model(
        model,
        load_dataset("digits").subset(SAMPLES),
        SUITE,
        store=Store(folder),
        listener=listener,
        settings=Settings(batch_size=BATCH, precision="fp32", snapshot_seconds=0.0),
    )


def main(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    # Forking a process with threads may hang in general; this one has a single working thread.
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    counter = Counter()
    model = load_model("pgd-at", dataset="digits")
    model.register_forward_pre_hook(lambda _, inputs: counter.add(len(inputs[0])))
    marks = Marks(counter)
    start = time.perf_counter()
    run(model, folder / "reference", marks)
    duration = time.perf_counter() - start
    reference = counter.value
    rng = random.Random(seed)
    killed, finished, costs = 0, 0, []
    before = counter.value
    while killed < kills or finished == 0:
        child = os.fork()
        if child == 0:
            try:
                run(model, folder / str(finished))
                os._exit(0)
            except BaseException as error:
                sys.stderr.write(f"{error!r}\n")
                os._exit(1)
        time.sleep(rng.uniform(0.0, 0.6 * duration))
        if killed < kills:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            killed += 1
        elif os.WEXITSTATUS(status) != 0:
            raise SystemExit("a run failed")
        else:
            finished += 1
            costs.append(counter.value - before)
            before = counter.value
    # The last, unfinished round is completed too.
    run(model, folder / str(finished))
    costs.append(counter.value - before)
    return {
        "kills": killed,
        "rounds": finished + 1,
        "reference": reference,
        "start": marks.starts[0],
        "outside": marks.outside,
        "total": sum(costs),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
