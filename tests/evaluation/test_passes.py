from __future__ import annotations

import pytest
import torch
from attack_models import ExactNetwork, Watching, images, predictions
from torch import Tensor, nn

from robench.acceleration.search_models import EagerModel
from robench.attacks.losses import LOSSES, Loss
from robench.devices import is_out_of_memory
from robench.evaluation.passes import Passes


def _passes(module: nn.Module, batch_size: int = 64, slots: int = 10) -> Passes:
    passes = Passes(EagerModel(module), 6, batch_size)
    passes.reset(slots, torch.device("cpu"))
    return passes


def _loss(model: nn.Module, points: Tensor) -> Loss:
    labels = predictions(model, points)
    return Loss(LOSSES["ce"], labels, labels)


def test_passes_are_counted_for_the_slots_that_asked() -> None:
    model, points = ExactNetwork(), images(10)
    passes = _passes(model)
    rows = torch.tensor([1, 4])
    passes.logits(points)
    passes.logits(points[rows], rows)
    passes.gradient(points[rows], _loss(model, points[rows]), rows)
    passes.jacobian(points[:1], torch.tensor([9]))
    assert passes.forwards.tolist() == [1, 3, 1, 1, 3, 1, 1, 1, 1, 2]
    assert passes.backwards.tolist() == [0, 1, 0, 0, 1, 0, 0, 0, 0, 6]


@pytest.mark.parametrize("batch_size", [1, 3, 10, 100])
def test_splitting_changes_nothing(batch_size: int) -> None:
    model, points = ExactNetwork(), images(10)
    loss = _loss(model, points)
    largest = [0]

    def watch(batch: Tensor) -> None:
        largest[0] = max(largest[0], len(batch))

    passes = _passes(Watching(model, watch), batch_size)
    assert torch.equal(passes.logits(points), model(points))
    seen = passes.gradient(points, loss)
    leaf = points.clone().requires_grad_()
    with torch.enable_grad():
        value = nn.functional.cross_entropy(model(leaf), loss.labels, reduction="none")
    (slope,) = torch.autograd.grad(value.sum(), leaf)
    torch.testing.assert_close(seen.losses, value.detach())
    torch.testing.assert_close(seen.gradient, slope, atol=1e-6, rtol=1e-5)
    assert largest[0] == min(batch_size, 10)


def test_the_jacobian_equals_autograds() -> None:
    model, points = ExactNetwork(), images(4)
    logits, slopes = _passes(model, slots=4).jacobian(points)
    expected = torch.stack(
        [torch.autograd.functional.jacobian(lambda x: model(x)[0], p[None])[:, 0] for p in points]
    )
    assert torch.equal(logits, model(points))
    torch.testing.assert_close(slopes, expected)


def test_failing_inputs_come_back_as_nan_with_their_message() -> None:
    model, points = ExactNetwork(), images(10) * 0.9
    points[6, 0, 0, 0] = 0.95
    calls = [0]

    def refuse(batch: Tensor) -> None:
        calls[0] += 1
        if bool((batch[:, 0, 0, 0] > 0.9).any()):
            raise ValueError("no such token\nat layer 3")

    passes = _passes(Watching(model, refuse))
    logits = passes.logits(points)
    assert passes.failures == {6: "ValueError: no such token"}
    assert bool(logits[6].isnan().all())
    others = [index for index in range(10) if index != 6]
    assert torch.equal(logits[others], model(points)[others])
    assert calls[0] <= 9  # halving, not one by one
    rows = torch.tensor([2, 6])
    passes.reset(10, torch.device("cpu"))
    seen = passes.gradient(points[rows], _loss(model, points[rows]), rows)
    assert list(passes.failures) == [6]
    assert not bool(seen.gradient[1].any())
    assert bool(seen.gradient[0].any())


def test_nothing_is_asked_about_nothing() -> None:
    def never(batch: Tensor) -> None:
        raise AssertionError("the model was called")

    passes = _passes(Watching(ExactNetwork(), never), slots=0)
    none = torch.zeros(0, 1, 6, 6)
    assert passes.logits(none).shape == (0, 6)
    labels = torch.zeros(0, dtype=torch.int64)
    assert passes.gradient(none, Loss(LOSSES["ce"], labels, labels)).gradient.shape == none.shape
    assert passes.jacobian(none)[1].shape == (0, 6, 1, 6, 6)


def test_one_input_too_large_for_the_memory_is_an_error_of_its_own() -> None:
    def too_large(batch: Tensor) -> None:
        raise torch.OutOfMemoryError("out of memory")

    passes = _passes(Watching(ExactNetwork(), too_large), slots=3)
    assert bool(passes.logits(images(3)).isnan().all())
    assert list(passes.failures) == [0, 1, 2]
    assert passes.batch_size == 1


def test_keyboard_interrupts_are_no_failures() -> None:
    def interrupt(batch: Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _passes(Watching(ExactNetwork(), interrupt)).logits(images(3))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("x"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shape '[3]' is invalid"), False),
        (ValueError("memory"), False),
    ],
)
def test_out_of_memory_is_recognised(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_non_finite_gradients_come_back_as_zero() -> None:
    class Steep(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            flat = points.flatten(1)
            return (flat[:, :6] * 0).sqrt() + flat[:, 6:12]

    passes = _passes(Steep())
    points = images(10)
    seen = passes.gradient(points, _loss(Steep(), points))
    assert bool(seen.gradient.isfinite().all())
    assert passes.nonfinite_gradients == 10
    assert passes.failures == {}
