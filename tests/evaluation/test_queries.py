from __future__ import annotations

import pytest
import torch
from attack_models import ExactNetwork, Watching, images, predictions
from torch import Tensor, nn

from robench.acceleration.search_models import SearchModel
from robench.attacks.losses import LOSSES, Loss
from robench.devices import is_out_of_memory
from robench.evaluation.adjudicate import Adjudicator
from robench.evaluation.queries import Queries
from robench.threat_models import ThreatModel


def _queries(module: nn.Module, batch_size: int = 64, slots: int = 10) -> Queries:
    queries = Queries(SearchModel(module), 6, batch_size)
    queries.reset(slots, torch.device("cpu"))
    return queries


def _loss(model: nn.Module, points: Tensor) -> Loss:
    labels = predictions(model, points)
    return Loss(LOSSES["ce"], labels, labels)


def test_passes_are_counted_for_the_slots_that_asked() -> None:
    model, points = ExactNetwork(), images(10)
    queries = _queries(model)
    rows = torch.tensor([1, 4])
    queries.logits(points)
    queries.logits(points[rows], rows)
    queries.gradient(points[rows], _loss(model, points[rows]), rows)
    queries.jacobian(points[:1], torch.tensor([9]))
    assert queries.forwards.tolist() == [1, 3, 1, 1, 3, 1, 1, 1, 1, 2]
    assert queries.backwards.tolist() == [0, 1, 0, 0, 1, 0, 0, 0, 0, 6]


@pytest.mark.parametrize("batch_size", [1, 3, 10, 100])
def test_splitting_changes_nothing(batch_size: int) -> None:
    model, points = ExactNetwork(), images(10)
    loss = _loss(model, points)
    largest = [0]

    def watch(batch: Tensor) -> None:
        largest[0] = max(largest[0], len(batch))

    queries = _queries(Watching(model, watch), batch_size)
    assert torch.equal(queries.logits(points), model(points))
    seen = queries.gradient(points, loss)
    leaf = points.clone().requires_grad_()
    with torch.enable_grad():
        value = nn.functional.cross_entropy(model(leaf), loss.labels, reduction="none")
    (slope,) = torch.autograd.grad(value.sum(), leaf)
    torch.testing.assert_close(seen.losses, value.detach())
    torch.testing.assert_close(seen.gradient, slope, atol=1e-6, rtol=1e-5)
    assert min(batch_size, 10) <= largest[0] <= batch_size


def test_the_jacobian_equals_autograds() -> None:
    model, points = ExactNetwork(), images(4)
    logits, slopes = _queries(model, slots=4).jacobian(points)
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

    queries = _queries(Watching(model, refuse))
    logits = queries.logits(points)
    assert queries.failures == {6: "ValueError: no such token"}
    assert bool(logits[6].isnan().all())
    others = [index for index in range(10) if index != 6]
    assert torch.equal(logits[others], model(points)[others])
    assert calls[0] <= 9  # halving, not one by one
    rows = torch.tensor([2, 6])
    queries.reset(10, torch.device("cpu"))
    seen = queries.gradient(points[rows], _loss(model, points[rows]), rows)
    assert list(queries.failures) == [6]
    assert not bool(seen.gradient[1].any())
    assert bool(seen.gradient[0].any())


def test_nothing_is_asked_about_nothing() -> None:
    def never(batch: Tensor) -> None:
        raise AssertionError("the model was called")

    queries = _queries(Watching(ExactNetwork(), never), slots=0)
    none = torch.zeros(0, 1, 6, 6)
    assert queries.logits(none).shape == (0, 6)
    labels = torch.zeros(0, dtype=torch.int64)
    assert queries.gradient(none, Loss(LOSSES["ce"], labels, labels)).gradient.shape == none.shape
    assert queries.jacobian(none)[1].shape == (0, 6, 1, 6, 6)


def test_one_input_too_large_for_the_memory_is_an_error_of_its_own() -> None:
    def too_large(batch: Tensor) -> None:
        raise torch.OutOfMemoryError("out of memory")

    queries = _queries(Watching(ExactNetwork(), too_large), slots=3)
    assert bool(queries.logits(images(3)).isnan().all())
    assert list(queries.failures) == [0, 1, 2]
    assert queries.parts.size == 1


def test_keyboard_interrupts_are_no_failures() -> None:
    def interrupt(batch: Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _queries(Watching(ExactNetwork(), interrupt)).logits(images(3))


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

    queries = _queries(Steep())
    points = images(10)
    seen = queries.gradient(points, _loss(Steep(), points))
    assert bool(seen.gradient.isfinite().all())
    assert queries.nonfinite is not None
    assert queries.nonfinite.tolist() == [True] * 10
    assert queries.failures == {}


class _RoundingOtherwise(ExactNetwork):
    """As libraries do for a few inputs."""

    def forward(self, inputs: Tensor) -> Tensor:
        logits = super().forward(inputs)
        return logits if len(inputs) >= 4 else logits * (1 + 2.0**-10)


def test_a_few_inputs_are_asked_as_many_are() -> None:
    model, points = _RoundingOtherwise(), images(10)
    loss = _loss(model, points)
    threat = ThreatModel.of("Linf", 0.1)
    rivals, labels = torch.zeros(10, 2, dtype=torch.int64), torch.ones(10, dtype=torch.int64)
    every = torch.arange(10)

    def asked(rows: Tensor) -> list[Tensor]:
        queries = _queries(model, slots=len(rows), batch_size=7)
        some = points[rows]
        judged = Adjudicator(model, threat, batch_size=7).judge(some, some, labels[rows])
        slope = queries.gradient(some, loss.at(rows))
        return [
            queries.logits(some),
            slope.losses,
            slope.gradient,
            *queries.jacobian(some),
            queries.steepness(some, rivals[rows], labels[rows], "L2"),
            judged.margin,
        ]

    whole = asked(every)
    for rows in (every[3:4], every[[6, 2]], every[:3], every[:8]):
        for found, expected in zip(asked(rows), whole, strict=True):
            assert torch.equal(found, expected[rows])
