"""What a record says about where and how it ran: memory that is the job's, on any system."""

from __future__ import annotations

import importlib
import multiprocessing
import sys
from collections.abc import Callable

import pytest
import torch
from forks import in_a_fork

from robench.evaluation.environment import PeakMemory


def hold(mib: int) -> None:
    torch.ones(mib * 2**18)  # float32, written to


def worker(mib: int) -> None:
    child = multiprocessing.get_context("fork").Process(target=hold, args=(mib,))
    child.start()
    child.join()


def job(*calls: tuple[Callable[[int], None], int]) -> float | None:
    memory = PeakMemory(torch.device("cpu"))
    for call, mib in calls:
        call(mib)
    return memory.mib()


def five_jobs() -> list[float | None]:
    return [
        job((hold, 40)),
        job((hold, 10)),
        job((hold, 80)),
        job((hold, 10), (worker, 160)),
        job((hold, 120), (worker, 10)),
    ]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and KiB")
def test_memory_is_the_jobs_with_its_workers_or_undefined() -> None:
    # In a process of their own: peaks are counted from a process's beginning.
    first, smaller, larger, helped, less = in_a_fork(five_jobs)
    assert first >= 40
    assert smaller is None  # hidden by what the first held
    assert larger >= first + 25
    assert helped >= 160  # a worker's
    assert less is None  # its workers may have held as much as the earlier one's


def peak_of_robench_without_resource() -> float | None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "robench"]:
        del sys.modules[name]
    sys.modules["resource"] = None  # type: ignore[assignment] # importing it fails
    for name in ("api", "cli.main", "inspection.verification"):
        importlib.import_module(f"robench.{name}")
    environment = importlib.import_module("robench.evaluation.environment")
    peak: float | None = environment.PeakMemory(torch.device("cpu")).mib()
    return peak


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks")
def test_where_the_system_does_not_count_memory_is_undefined() -> None:
    """As on Windows, which has no ``resource``: nothing that evaluates needs it."""
    assert in_a_fork(peak_of_robench_without_resource) is None


def test_on_cuda_the_devices_count_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"now": 7 * 2**20, "peak": 9 * 2**30}
    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda _: held.update(peak=held["now"])
    )
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: held["peak"])
    assert PeakMemory(torch.device("cuda")).mib() == 7.0


def test_of_other_accelerators_nothing_is_known() -> None:
    assert PeakMemory(torch.device("mps")).mib() is None
