"""Times end when the device has done its work, not when it was asked for it."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from robench.acceleration.search_models import SearchModel
from robench.acceleration.timing import measured, rates, seconds_a_call, threads_of, tiled


def test_the_accelerator_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that is asked at once and takes 30 ms, as MPS and CUDA do."""
    fake = SimpleNamespace(is_available=lambda: True, synchronize=lambda: time.sleep(0.03))
    monkeypatch.setattr(torch, "accelerator", fake)
    assert seconds_a_call(lambda: None) >= 0.03


def test_rows_are_repeated_or_cut() -> None:
    rows = torch.tensor([[1, 2], [3, 4]])
    assert tiled(rows, 5)[:, 0].tolist() == [1, 3, 1, 3, 1]
    assert tiled(rows, 1).tolist() == [[1, 2]]


class Resting(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, inputs: Tensor) -> Tensor:
        time.sleep(self.seconds)
        if len(inputs) > 100:
            raise RuntimeError("CUDA out of memory")
        return inputs.flatten(1)[:, :3]


def test_rates_are_inputs_a_second_and_none_where_memory_is_short() -> None:
    points, labels = torch.rand(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64)
    slow, fast = SearchModel(Resting(0.05)), SearchModel(Resting(0.005))
    found = rates([slow, fast], "gradient", points, labels, 10)
    assert found[0] <= 10 / 0.05
    assert 2 * found[0] < found[1] <= 10 / 0.005
    assert measured(fast, "logits", points, labels, 101) == (0.0, float("inf"))

    def failing(_: Tensor) -> Tensor:
        raise RuntimeError("no such operator")

    fast.module.forward = failing  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="no such operator"):
        measured(fast, "logits", points, labels, 4)


@pytest.mark.parametrize(("workers", "threads"), [(1, 3), (2, 1)])
def test_workers_are_timed_on_one_thread(workers: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with threads_of(workers):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
