"""Waiting for a device and its memory, on machines that have one and on those that have none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from robench import devices
from robench.acceleration.timing import threads_of
from robench.errors import DeviceError


class Accelerator(SimpleNamespace):
    """Stands in for ``torch.accelerator`` on a machine that has one."""

    def __init__(self, present: bool = True) -> None:
        self.calls: list[str] = []
        super().__init__(
            is_available=lambda: present,
            synchronize=lambda: self.calls.append("synchronize"),
            empty_cache=lambda: self.calls.append("empty_cache"),
        )


@pytest.mark.parametrize("present", [True, False])
def test_any_accelerator_is_waited_for_and_asked_for_its_memory(
    monkeypatch: pytest.MonkeyPatch, present: bool
) -> None:
    fake = Accelerator(present)
    monkeypatch.setattr(torch, "accelerator", fake)
    devices.synchronise()
    assert fake.calls == ["synchronize"] * present
    devices.free_memory()
    assert fake.calls == ["synchronize", "empty_cache"] * present


def test_where_torch_has_no_cache_for_all_it_is_cudas(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Accelerator()
    del fake.empty_cache
    monkeypatch.setattr(torch, "accelerator", fake)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: fake.calls.append("cuda"))
    devices.free_memory()
    assert fake.calls == ["cuda"]


def test_the_memory_of_this_machine_is_known_and_of_others_may_not_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = torch.device("cpu")
    found = devices.total_memory(cpu)
    assert found is not None
    assert found > 2**28
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1, 2**34))
    assert devices.total_memory(torch.device("cuda")) == 2**34
    monkeypatch.delattr("os.sysconf")
    assert devices.total_memory(cpu) is None


@pytest.mark.parametrize(
    "name, found",
    [("cpu:2", ["cpu", "cpu"]), ("cpu:3", ["cpu"] * 3), ("cpu", ["cpu"]), ("cpu:1", ["cpu"])],
)
def test_search_loops_on_a_cpu_are_counted(name: str, found: list[str]) -> None:
    assert [str(device) for device in devices.resolve_devices(name)] == found


def test_several_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    named = [str(device) for device in devices.resolve_devices("cuda:all")]
    assert named == ["cuda:0", "cuda:1", "cuda:2"]
    assert [str(d) for d in devices.resolve_devices("cuda:2, cuda:0")] == ["cuda:2", "cuda:0"]
    for refused in ("cuda:0,cuda:0", "cpu,cuda:0", "cuda:0,cuda:3", "cuda:0,", "cpu:0,cpu:2"):
        with pytest.raises(DeviceError):
            devices.resolve_devices(refused)


@pytest.mark.parametrize("name", ["cpu:2", "cuda:all", "cuda:0,cuda:1"])
def test_several_are_not_one(name: str) -> None:
    with pytest.raises(DeviceError, match="is not one device"):
        devices.resolve_device(name)


def test_no_tf32_inside_single_precision() -> None:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with devices.single_precision():
        assert not torch.backends.cudnn.allow_tf32
    assert before == (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)


@pytest.mark.parametrize(
    "count, workers, at_most, found",
    [(1, 2, 64, 4), (3, 2, 64, 4), (4, 2, 64, 4), (9, 2, 64, 9), (1, 2, 1, 1), (2, 2, 3, 3)],
)
def test_small_passes_on_a_cpu_are_filled_up(
    count: int, workers: int, at_most: int, found: int
) -> None:
    """By one thread from four on, and never beyond what was asked for at a time."""
    numbers = torch.arange(20, 20 + count + 7)
    with threads_of(workers):
        chosen = numbers[devices.filled(slice(2, 2 + count), torch.device("cpu"), at_most)]
    assert chosen.tolist() == [*range(22, 22 + count), *[21 + count] * (found - count)]


def test_passes_by_several_threads_are_filled_up_further(monkeypatch: pytest.MonkeyPatch) -> None:
    for threads, enough in ((2, 16), (3, 24), (64, 32)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert len(devices.filled(slice(0, 5), torch.device("cpu"), 99)) == enough
    assert devices.filled(slice(0, 5), torch.device("cuda"), 99) == slice(0, 5)
