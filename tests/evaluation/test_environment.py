"""What a record says about where and how it ran: memory that is the job's, on any system."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch

from robench.evaluation.environment import PeakMemory


def in_a_fresh_process(code: str) -> Any:
    """What a new interpreter prints, as JSON: peaks are counted from a process's beginning."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


BEGINNING = """
    import json, multiprocessing, torch
    from robench.evaluation.environment import PeakMemory

    def hold(mib):
        torch.ones(mib * 2**18)  # float32, written to

    def worker(mib):
        child = multiprocessing.get_context("fork").Process(target=hold, args=(mib,))
        child.start()
        child.join()

    def job(*calls):
        memory = PeakMemory(torch.device("cpu"))
        for call, mib in calls:
            call(mib)
        return memory.mib()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and KiB")
def test_memory_is_the_jobs_with_its_workers_or_undefined() -> None:
    first, smaller, larger, helped, less = in_a_fresh_process(
        BEGINNING
        + """
    jobs = [
        job((hold, 300)),
        job((hold, 100)),
        job((hold, 500)),
        job((hold, 100), (worker, 1200)),
        job((hold, 700), (worker, 100)),
    ]
    print(json.dumps(jobs))
    """
    )
    assert first >= 300
    assert smaller is None  # hidden by what the first held
    assert larger >= first + 150
    assert helped >= 1200  # a worker's
    assert less is None  # its workers may have held as much as the earlier one's


def test_where_the_system_does_not_count_memory_is_undefined() -> None:
    """As on Windows, which has no ``resource``: nothing that evaluates needs it."""
    assert in_a_fresh_process(
        """
        import json, sys
        sys.modules["resource"] = None  # importing it fails
        import torch, robench.api, robench.cli.main, robench.inspection.verification
        from robench.evaluation.environment import PeakMemory
        print(json.dumps([PeakMemory(torch.device("cpu")).mib()]))
        """
    ) == [None]


def test_on_cuda_the_devices_count_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"now": 7 * 2**20, "peak": 9 * 2**30}
    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda _: held.update(peak=held["now"])
    )
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: held["peak"])
    assert PeakMemory(torch.device("cuda")).mib() == 7.0


def test_of_other_accelerators_nothing_is_known() -> None:
    assert PeakMemory(torch.device("mps")).mib() is None
