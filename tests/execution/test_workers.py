"""Searches side by side: the same results, whole snapshots, and failures that reach the caller."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from attack_models import ExactNetwork, images, predictions
from torch import Tensor, nn

import robench
from robench.datasets import ArrayDataset
from robench.errors import ModelError, UsageError
from robench.evaluation.cascade import Cascade
from robench.evaluation.cascade_state import PhaseCounts
from robench.evaluation.prepared_model import PreparedModel, Settings, prepare_model
from robench.execution import (
    Call,
    Executor,
    Forks,
    Progress,
    Save,
    Task,
    ThisProcess,
    Threads,
    worker_count,
)
from robench.execution.scheduling import Taken
from robench.models import wrap_module
from robench.models.wrapper import RobenchModel
from robench.records import AttackSpec, Suite
from robench.threat_models import ThreatModel

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or torch.accelerator.is_available(),
    reason="needs a safe fork",
)

N = 12
THREAT = ThreatModel.of("Linf", "0.02")
CPU = torch.device("cpu")
SPEC = AttackSpec(
    name="two",
    stages=(
        AttackSpec(name="pgd", attack="pgd", params={"steps": 3}),
        AttackSpec(
            name="apgd-t", attack="apgd", params={"loss": "dlr-targeted", "steps": 5, "targets": 2}
        ),
    ),
)


def problem(network: nn.Module | None = None) -> tuple[RobenchModel, ArrayDataset]:
    exact = ExactNetwork()
    inputs = images(N, seed=1)
    data = ArrayDataset(inputs, predictions(exact, inputs), num_classes=6)
    model = wrap_module(network or exact, num_classes=6, input={"channels": 1}, threat_model=THREAT)
    return model.eval(), data


def cascade(workers: int, save: Any = None, **options: Any) -> Cascade:
    network, loops = options.pop("network", None), options.pop("loops", 1)
    clean = plain(loops) if network is None else prepared(network)
    if loops == 1:
        clean = replace(clean, executor=Forks(workers))
    return Cascade(SPEC, replace(clean, shard_size=N), save=save, **options)


def prepared(network: nn.Module | None, loops: int = 1) -> PreparedModel:
    model, data = problem(network)
    further = (CPU,) * (loops - 1)
    settings = Settings(precision="fp32", batch_size=12, further_devices=further)
    return prepare_model(model, data, THREAT, settings, [SPEC])


@cache
def plain(loops: int = 1) -> PreparedModel:
    return prepared(None, loops)


def results(attacked: Any) -> dict[str, Any]:
    counted = ("name", "attempted", "broken", "errored", "forwards", "backwards")
    return {
        "stage": attacked.stage.tolist(),
        "points": attacked.adv_inputs[torch.arange(len(attacked.stage))].tolist(),
        "margins": attacked.closest_margin.tolist(),
        "forwards": attacked.forwards.tolist(),
        "stages": [tuple(getattr(s, name) for name in counted) for s in attacked.stages],
    }


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    run = cascade(1)
    found = results(run.run(torch.zeros(N, 1, 6, 6)))
    assert {-1, 0} < set(found["stage"])
    return found


@pytest.mark.parametrize(
    "workers, loops", [(3, 1), (2, 2), pytest.param(50, 1, marks=pytest.mark.slow)]
)
def test_the_number_of_workers_changes_no_result(
    workers: int, loops: int, expected: dict[str, Any]
) -> None:
    steps: list[int] = []
    run = cascade(workers, progress=steps.append, loops=loops)
    assert (run.workers, run.batch_size) == (min(workers, 12), 12 // min(workers, 12))
    found = results(run.run(torch.zeros(N, 1, 6, 6)))
    for name in ("stage", "points", "margins"):
        assert found[name] == expected[name], name
    # Which searches ran beside the deciding one depends on the batch; what is attempted does not.
    assert [s[:4] for s in found["stages"]] == [s[:4] for s in expected["stages"]]
    assert sum(steps) == sum(run.stage_steps(a, n) for a, n in _attempts(run, found))


def _attempts(run: Cascade, found: dict[str, Any]) -> list[tuple[Any, int]]:
    return [(a, s[1]) for a, s in zip(run.attacks, found["stages"], strict=True)]


@pytest.fixture(scope="module")
def every_snapshot() -> list[bytes]:
    """Of one run with three workers."""
    kept: list[bytes] = []

    def keep(make: Any) -> None:
        file = io.BytesIO()
        torch.save(make(), file)
        kept.append(file.getvalue())

    cascade(3, save=keep).run(torch.zeros(N, 1, 6, 6))
    return kept


@pytest.mark.parametrize(
    ("snapshots", "least"),
    [pytest.param(2, 1, id="few"), pytest.param(12, 2, id="many", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize(
    "workers_after",
    [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)],
)
def test_a_snapshot_of_several_engines_goes_on_anywhere(
    workers_after: int,
    snapshots: int,
    least: int,
    every_snapshot: list[bytes],
    expected: dict[str, Any],
) -> None:
    loaded = [torch.load(io.BytesIO(one), weights_only=True) for one in every_snapshot]
    several = [saved for saved in loaded if len(saved["shards"]) > 1]
    assert len(several) >= least
    for saved in several[:: -(-len(several) // snapshots)]:
        run = cascade(workers_after)
        found = results(run.run(torch.zeros(N, 1, 6, 6), saved))
        for name in ("stage", "points", "margins"):
            assert found[name] == expected[name], name
        assert [s[:4] for s in found["stages"]] == [s[:4] for s in expected["stages"]]


@pytest.mark.parametrize("executor", [ThisProcess(), Forks(2), Threads(2)], ids=repr)
def test_what_a_task_left_behind_is_forgotten_with_it(executor: Executor) -> None:
    def prepare(task: Task, number: int) -> Call:
        def call(progress: Progress, save: Save) -> dict[str, Any]:
            save(lambda: {"points": torch.zeros(3)})
            return {"sum": int(task.about.sum())}

        return call

    tasks = [Task(torch.arange(3)), Task(torch.arange(3, 6))]
    left: list[int] = []
    results = executor.run(tasks, prepare, None, lambda unfinished: left.append(len(unfinished())))
    assert sorted(found["sum"] for _, found in results) == [3, 12]
    assert [task.state for task in tasks] == [None, None]
    assert left[-1] == 0


class Impatient(Threads):
    """Gives to an idle worker whatever another is at."""

    def twice(self, running: Sequence[Taken], done: Sequence[Taken]) -> int | None:
        return 0 if done and running else None


def test_what_a_second_worker_ends_first_counts_once() -> None:
    """The one that is late is stopped before anything is made of the other's result."""
    tries: list[str] = []
    ended = threading.Event()

    def prepare(task: Task, number: int) -> Call:
        tries.append(task.about)
        late = tries == ["first", "late"]

        def call(progress: Progress, save: Save) -> dict[str, Any]:
            progress(1)
            try:
                while late:
                    save(dict)
                    time.sleep(0.01)
            finally:
                if late:
                    ended.set()
            progress(1)
            return {"number": number}

        return call

    steps: list[int] = []
    tasks = [Task("first"), Task("late")]
    for task, found in Impatient(2).run(tasks, prepare, steps.append, lambda unfinished: None):
        assert task.about == "first" or (ended.is_set() and found == {"number": 0})
        tasks.remove(task)
    assert tries == ["first", "late", "late"]
    assert (tasks, sum(steps)) == ([], 4)


class _InterruptedError(Exception):
    """Raised while several processes search."""


@pytest.mark.parametrize("workers, loops", [(3, 1), (2, 2)])
def test_an_interruption_stops_all_and_leaves_a_whole_snapshot(
    workers: int, loops: int, expected: dict[str, Any]
) -> None:
    calls = 0
    latest: list[Any] = []

    def fail_late(make: Any) -> None:
        nonlocal calls
        calls += 1
        latest[:] = [make]
        if calls == 6:
            raise _InterruptedError

    threads = threading.active_count()
    run = cascade(workers, save=fail_late, loops=loops)
    with pytest.raises(_InterruptedError):
        run.run(torch.zeros(N, 1, 6, 6))
    assert calls == 6
    assert not multiprocessing.active_children()
    assert threading.active_count() == threads
    file = io.BytesIO()
    torch.save(latest[0](), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert saved["shards"]
    run = cascade(2)
    found = results(run.run(torch.zeros(N, 1, 6, 6), saved))
    assert (found["stage"], found["points"]) == (expected["stage"], expected["points"])


class InChildren(ExactNetwork):
    """Does something in forked processes only, from the given number of passes on."""

    def __init__(self, act: Callable[[], None], after: int = 0) -> None:
        super().__init__()
        self.act = act
        self.home = os.getpid()
        self.left = after

    def forward(self, inputs: Tensor) -> Tensor:
        if os.getpid() != self.home:
            self.left -= 1
            if self.left < 0:
                self.act()
        return super().forward(inputs)


@pytest.mark.parametrize("after", [0, 4])
def test_the_samples_of_a_worker_that_dies_are_searched_here(
    after: int, expected: dict[str, Any]
) -> None:
    network = InChildren(lambda: os.kill(os.getpid(), signal.SIGKILL), after)
    run = cascade(2, save=lambda make: make() and None, network=network)
    found = results(run.run(torch.zeros(N, 1, 6, 6)))
    assert (found["stage"], found["points"]) == (expected["stage"], expected["points"])


@pytest.mark.parametrize("after", [0, 4])
def test_the_samples_of_a_worker_that_hangs_are_searched_here(
    after: int, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robench.execution.forks._STALLED", 1.0)
    monkeypatch.setattr("robench.execution.pool._PATIENCE", 0.2)
    network = InChildren(lambda: time.sleep(3600), after)
    run = cascade(2, save=lambda make: make() and None, network=network)
    attacked = run.run(torch.zeros(N, 1, 6, 6))
    found = results(attacked)
    assert (found["stage"], found["points"]) == (expected["stage"], expected["points"])
    assert not multiprocessing.active_children()
    (flag,) = [flag for flag in run.flags(attacked) if flag.name == "workers_stalled"]
    assert flag.count == 2


@pytest.mark.parametrize("code", [0, 3])
def test_a_worker_whose_model_ends_the_process_is_no_result(code: int) -> None:
    run = cascade(2, network=InChildren(lambda: os._exit(code)))
    with pytest.raises(ModelError, match=rf"ended the process \(exit code {code}\)"):
        run.run(torch.zeros(N, 1, 6, 6))
    assert not multiprocessing.active_children()


def test_a_model_that_calls_exit_errs(expected: dict[str, Any]) -> None:
    run = cascade(2, network=InChildren(lambda: sys.exit(0)))
    attacked = run.run(torch.zeros(N, 1, 6, 6))
    assert len(attacked.errors) == N
    assert "ended the process" in attacked.errors[0]


def test_what_a_model_raises_in_a_worker_marks_its_samples() -> None:
    def refuse() -> None:
        raise ValueError("not today")

    run = cascade(2, network=InChildren(refuse))
    attacked = run.run(torch.zeros(N, 1, 6, 6))
    assert len(attacked.errors) == N
    assert set(attacked.errors.values()) == {"ValueError: not today"}


def test_a_fault_of_the_search_itself_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    class UnportableError(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(f"{one} and {two}")

    def broken(*_: Any, **__: Any) -> None:
        raise UnportableError(1, 2)

    monkeypatch.setattr("robench.evaluation.cascade.Search.run", broken)
    run = cascade(2)
    with pytest.raises(RuntimeError, match="1 and 2") as caught:
        run.run(torch.zeros(N, 1, 6, 6))
    assert "def broken" not in str(caught.value)
    assert any("in broken" in note for note in caught.value.__notes__)


def test_a_worker_has_one_thread() -> None:
    def check() -> None:
        if torch.get_num_threads() != 1:
            raise ValueError(f"{torch.get_num_threads()} threads")

    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        run = cascade(2, network=InChildren(check))
        assert run.run(torch.zeros(N, 1, 6, 6)).errors == {}
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def _search_slowly(pids: Connection) -> None:
    def linger() -> None:
        pids.send(os.getpid())
        time.sleep(0.2)

    cascade(2, network=InChildren(linger)).run(torch.zeros(N, 1, 6, 6))


def test_workers_end_with_the_process_that_started_them() -> None:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    parent = context.Process(target=_search_slowly, args=(sender,))
    parent.start()
    seen: set[int] = set()
    while len(seen) < 2:
        seen.add(receiver.recv())
    parent.kill()
    parent.join()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(_lives(pid) for pid in seen):
        time.sleep(0.05)
    assert not any(_lives(pid) for pid in seen)


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


class Drawing(ExactNetwork):
    """A randomised defense: its draws come from one stream."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward((inputs + 0.01 * torch.randn_like(inputs)).clamp(0, 1))


class Counting(ExactNetwork):
    """Changes a buffer with every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.passes += 1
        return super().forward(inputs)


@pytest.mark.parametrize("network, alone", [(Drawing, True), (Counting, True), (None, False)])
def test_passes_that_belong_together_have_one_worker(network: Any, alone: bool) -> None:
    model, data = problem(None if network is None else network())
    settings = Settings(precision="fp32", workers=3)
    clean = prepare_model(model, data, THREAT, settings, [SPEC])
    assert clean.workers == (1 if alone else 3)


@pytest.mark.parametrize(
    "act, fine",
    [(lambda: None, True), (lambda: time.sleep(60), False), (lambda: 1 / 0, False)],
    ids=["works", "hangs", "fails"],
)
def test_a_rehearsal_tells_whether_a_fork_can_search(
    act: Callable[[], None], fine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robench.execution.forks._REHEARSAL", 1.0)
    model, data = problem(InChildren(act))
    settings = Settings(precision="fp32", workers=3)
    clean = prepare_model(model, data, THREAT, settings, [SPEC])
    assert clean.workers == (3 if fine else 1)
    assert not multiprocessing.active_children()


def test_as_many_as_threads_where_a_fork_is_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    for threads in (1, 2, 64):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert worker_count(CPU, None) == threads
    assert worker_count(CPU, 7) == 7
    assert worker_count(torch.device("cuda"), 7) == 1
    with monkeypatch.context() as patched:
        patched.setattr(torch.accelerator, "is_available", lambda: True)
        assert worker_count(CPU, 7) == 1
    monkeypatch.setattr(sys, "platform", "darwin")
    assert worker_count(CPU, 7) == 1


@pytest.mark.usefixtures("unexamined")
def test_from_python() -> None:
    model, data = problem()
    suite = Suite(name="two", attacks=(SPEC,))
    one, *others = [
        robench.evaluate(model, data, suite, precision="fp32", batch_size=12, **where)[0].table
        for where in (
            {"device": "cpu", "workers": 1},
            {"device": "cpu", "workers": 2},
            {"device": "cpu:2"},
        )
    ]
    for column in ("outcome", "broken_by", "adv_margin", "perturbation_size"):
        for other in others:
            assert list(one[column].astype(str)) == list(other[column].astype(str)), column


def _refuse(memo: object) -> nn.Module:
    raise TypeError("there is one of me")


@pytest.mark.parametrize(
    "copy, words",
    [
        (_refuse, "cannot be copied to it: TypeError: there is one of me"),
        (lambda memo: ExactNetwork(seed=3), "gives other logits there"),
    ],
)
def test_a_model_that_cannot_be_copied_is_refused(copy: Any, words: str) -> None:
    model, data = problem()
    model.network.__deepcopy__ = copy
    settings = Settings(precision="fp32", further_devices=(CPU,))
    with pytest.raises(ModelError, match=words):
        prepare_model(model, data, THREAT, settings, [SPEC])


def test_tf32_is_no_precision_of_several_devices() -> None:
    model, data = problem()
    settings = Settings(precision="tf32", further_devices=(CPU,))
    with pytest.raises(UsageError, match="setting of the whole process"):
        prepare_model(model, data, THREAT, settings, [SPEC])


def test_large_tasks_come_first_and_none_is_too_small_for_a_batch() -> None:
    run = cascade(2)
    run.prepared = replace(run.prepared, shard_size=40)
    due = PhaseCounts(torch.arange(100))
    assert [len(task.about) for task in run._tasks(due, [], 2)] == [20, 20, 15, 12, 9, 6, 6, 6, 6]
    assert [len(task.about) for task in run._tasks(due, [], 1)] == [40, 40, 20]
    few = PhaseCounts(torch.arange(7))
    assert [len(task.about) for task in run._tasks(few, [], 2)] == [4, 3]
