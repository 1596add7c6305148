"""Parts of jobs on a Ray cluster: the records of one process, and what becomes of calls that die."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from forks import in_a_fork

from robench.errors import ExecutionError, ModelError
from robench.execution import ray_cluster
from robench.execution.ray_cluster import RayCluster, Wanted, _check_versions
from robench.execution.scheduling import Taken, largest_first, latest, parts_of

SUPPORT = Path(__file__).parents[1] / "support"
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed, or has no wheel here"
)


def scenarios(folder: Path, *names: str) -> dict[str, Any]:
    """What these came to, by name, in a process whose program they are: after Ray has begun, none may fork."""

    def run() -> dict[str, Any]:
        import ray_scenarios

        sys.modules["__main__"] = ray_scenarios
        # Ray's processes import what is sent by name.
        os.environ["PYTHONPATH"] = os.pathsep.join([str(SUPPORT), *sys.path])
        os.environ |= {"RAY_prestart_worker_first_driver": "0"}
        return ray_scenarios.main(folder, names)

    found: dict[str, Any] = in_a_fork(run)
    return found


@needs_ray
def test_parts_on_a_cluster_make_the_record_of_one_process(tmp_path: Path) -> None:
    """Of a model that no other process can import."""
    told = scenarios(tmp_path, "alone", "from_main")
    assert told["from_main"]["contents"] == told["alone"]["contents"]
    assert told["from_main"]["warned"] == []


@needs_ray
@pytest.mark.slow
def test_a_call_that_dies_is_made_again_three_times_at_most(tmp_path: Path) -> None:
    told = scenarios(tmp_path, "alone", "dies_once", "dies")
    assert told["dies_once"]["contents"] == told["alone"]["contents"]
    (warned,) = told["dies_once"]["warned"]
    assert warned.startswith("pgd on model under Linf-0.02, ")
    assert warned.endswith("was lost (WorkerCrashedError)")
    assert "all samples died 3 times" in told["dies"]["error"]
    assert len(told["dies"]["warned"]) == 3
    assert told["dies"]["records"] == 0


class FakeRay:
    """Calls are made at once; ``ends`` says how each attempt ends: with an error, or None."""

    class exceptions:  # noqa: N801
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            cause: Exception | None = None

        class RaySystemError(RayError):
            pass

        class WorkerCrashedError(RayError):
            pass

    def __init__(self, *ends: Exception | None) -> None:
        self.ends, self.cancelled = list(ends), 0

    def remote(self, **options: Any) -> Any:
        assert options["max_retries"] == 0
        assert options["max_calls"] == (1 if options["num_gpus"] else 0)
        return lambda call: SimpleNamespace(remote=lambda *given: given)

    def wait(self, references: Any, timeout: float) -> Any:
        return references, []

    def get(self, reference: Any, timeout: float | None = None) -> Any:
        if reference == "steps":
            return 5
        if (error := self.ends.pop(0)) is not None:
            raise error
        return "done"

    def cancel(self, reference: Any, force: bool) -> None:
        self.cancelled += 1


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(ray: FakeRay, save: Any = lambda make: None) -> tuple[Any, int]:
        monkeypatch.setattr(ray_cluster, "_ray", lambda: ray)
        meter = SimpleNamespace(steps=SimpleNamespace(remote=lambda token: "steps"))
        cluster = RayCluster(2, "cpu", {"num_cpus": 1, "num_gpus": 0}, meter)
        steps: list[int] = []
        return cluster.call(len, [], steps.append, save, "this part"), sum(steps)

    return make


def test_what_is_lost_is_made_again_and_its_steps_count_once(call: Any, caplog: Any) -> None:
    lost = FakeRay.exceptions.WorkerCrashedError
    assert call(FakeRay(lost(), lost(), None)) == ("done", 5)
    assert caplog.messages == ["this part was lost (WorkerCrashedError)"] * 2
    with pytest.raises(ExecutionError, match=r"this part died 3 times \(WorkerCrashedError\)"):
        call(FakeRay(lost(), lost(), lost()))


def test_what_a_call_raises_is_raised_and_nothing_is_made_again(call: Any) -> None:
    raised = FakeRay.exceptions.RayTaskError()
    raised.cause = ModelError("no such thing")
    with pytest.raises(ModelError, match="no such thing"):
        call(FakeRay(raised))
    with pytest.raises(ExecutionError, match="this part failed: No module named 'mine'"):
        call(FakeRay(FakeRay.exceptions.RaySystemError("No module named 'mine'")))


def test_who_is_wanted_no_more_is_cancelled(call: Any) -> None:
    def stop(make: object) -> None:
        raise EOFError

    ray = FakeRay(None)
    with pytest.raises(EOFError):
        call(ray, stop)
    assert ray.cancelled == 1


@needs_ray
def test_a_cluster_that_does_not_answer_is_named() -> None:
    with pytest.raises(ExecutionError, match=r"--address 127\.0\.0\.1:1: no Ray cluster"):
        RayCluster.connect(Wanted("127.0.0.1:1"))


@pytest.mark.parametrize(
    "theirs, words",
    [
        ({"robench": "0.1", "torch": None}, "machine there: it has no torch, and this"),
        ({"robench": "0.2", "torch": "2"}, "it has robench 0.2, and this machine has 0.1"),
    ],
)
def test_machines_with_other_versions_are_refused(theirs: dict[str, Any], words: str) -> None:
    _check_versions({"robench": "0.1", "torch": "2"}, {"robench": "0.1", "torch": "2"}, "here")
    with pytest.raises(ExecutionError, match=words):
        _check_versions({"robench": "0.1", "torch": "2"}, theirs, "there")


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_machine_that_is_lost_costs_its_parts_only(seed: int, tmp_path: Path) -> None:
    told = scenarios(tmp_path, str(seed))
    assert told["lost"]["contents"] == told["alone"]["contents"]
    assert len(told["lost"]["warned"]) <= 1


@pytest.mark.parametrize(
    "n, share, workers, parts",
    [
        (5000, 1.0, 4, 48),  # twelve a worker
        (5000, 1.0, 16, 156),  # of 32 samples
        (5000, 1.0, 256, 1536),  # six a worker, of fewer
        (5000, 0.01, 256, 31),  # of a small job, at most its share of twelve a worker
        (10, 1.0, 256, 10),
        (10, 0.0, 4, 1),
    ],
)
def test_parts_keep_workers_busy(n: int, share: float, workers: int, parts: int) -> None:
    assert parts_of(n, share, workers, 32) == parts


def test_the_largest_are_begun_first() -> None:
    assert largest_first(["a", "bbb", "c", "ddd"], len) == ["bbb", "ddd", "a", "c"]


@pytest.mark.parametrize(
    "running, done, which",
    [
        ([(9, 1), (16, 1), (15, 1)], [(10, 1)] * 3, 1),
        ([(16, 2), (16, 1)], [(10, 1)], 1),  # the other is twice as large
        ([(16, 1)], [(10, 1), (20, 1), (20, 1)], None),  # half of them took as long
        ([(15, 1)], [(10, 1)], None),
        ([(99, 1)], [], None),
        ([], [(1, 1)], None),
    ],
)
def test_a_late_part_is_given_to_a_second_worker(running: Any, done: Any, which: Any) -> None:
    assert latest(*([Taken(*each) for each in given] for given in (running, done))) == which


def test_where_all_is_one_machine_nothing_is_late() -> None:
    late = [Taken(99, 1)], [Taken(1, 1)]
    assert RayCluster(2).twice(*late) is None
    assert RayCluster(2, _machines=2).twice(*late) == 0
