from __future__ import annotations

import pytest
import torch
from attack_models import LinearModel, Watching, images
from torch import Tensor, nn

from robench.acceleration.timing import threads_of
from robench.errors import ModelError
from robench.evaluation.adjudicate import Adjudicator
from robench.geometry import norm_tolerance
from robench.threat_models import NORMS, Norm, ThreatModel

EPS = 0.1


def _model() -> nn.Module:
    """Class 1 wherever the first pixel is above one half."""
    weight = torch.zeros(2, 4)
    weight[0, 0], weight[1, 0] = -1.0, 1.0
    return LinearModel(weight, torch.tensor([0.5, -0.5]))


def _judge(point: list[float], clean: list[float], norm: Norm = "Linf", label: int = 0) -> object:
    verdicts = Adjudicator(_model(), ThreatModel.of(norm, EPS)).judge(
        torch.tensor(point).view(1, 1, 2, 2),
        torch.tensor(clean).view(1, 1, 2, 2),
        torch.tensor([label]),
    )
    return bool(verdicts.broken), bool(verdicts.allowed), int(verdicts.prediction)


CLEAN = [0.45, 0.0, 1.0, 0.3]


def test_a_misclassified_point_of_ball_and_box_is_broken() -> None:
    assert _judge([0.55, 0.0, 1.0, 0.3], CLEAN) == (True, True, 1)
    assert _judge([0.48, 0.0, 1.0, 0.3], CLEAN) == (False, True, 0)


@pytest.mark.parametrize(
    "point",
    [
        [0.55, -1e-6, 1.0, 0.3],
        [0.55, 0.0, 1.0 + 1e-6, 0.3],
        [0.56, 0.0, 1.0, 0.3],
        [0.55, 0.0, 1.0, 0.41],
        [float("nan"), 0.0, 1.0, 0.3],
        [0.55, float("nan"), 1.0, 0.3],
        [float("inf"), 0.0, 1.0, 0.3],
    ],
)
def test_what_is_outside_is_refused(point: list[float]) -> None:
    broken, allowed, _ = _judge(point, CLEAN)  # type: ignore[misc]
    assert (broken, allowed) == (False, False)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("share", "accepted"), [(0.0, True), (0.5, True), (2.0, False)])
def test_rounding_is_tolerated_and_nothing_more(norm: Norm, share: float, accepted: bool) -> None:
    slack = norm_tolerance(norm, 4)
    inputs = torch.tensor([0.0, 0.0, 0.0, 0.0]).view(1, 1, 2, 2)
    points = inputs.clone()
    points[0, 0, 0, 0] = EPS + share * slack
    weight = torch.zeros(2, 4)
    model = LinearModel(weight, torch.tensor([0.0, 1.0]))
    verdicts = Adjudicator(model, ThreatModel.of(norm, EPS)).judge(
        points, inputs, torch.tensor([0])
    )
    assert verdicts.broken.tolist() == [accepted]
    assert float(verdicts.size) == pytest.approx(EPS + share * slack, abs=1e-8)


@pytest.mark.parametrize("norm", NORMS)
def test_the_size_is_the_norm(norm: Norm) -> None:
    inputs = images(6, (3, 4, 4), seed=1)
    points = images(6, (3, 4, 4), seed=2)
    model = LinearModel(torch.zeros(2, 48), torch.tensor([1.0, 0.0]))
    verdicts = Adjudicator(model, ThreatModel.of(norm, 1.0)).judge(
        points, inputs, torch.zeros(6, dtype=torch.int64)
    )
    order = {"Linf": torch.inf, "L2": 2, "L1": 1}[norm]
    expected = torch.linalg.vector_norm((points - inputs).flatten(1), ord=order, dim=1)
    torch.testing.assert_close(verdicts.size, expected)


def test_a_model_that_is_not_finite_there_breaks_nothing() -> None:
    class Fragile(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return _model()(inputs) / (inputs[:, 0, 0, :1] <= 0.5).float()

    verdicts = Adjudicator(Fragile(), ThreatModel.of("Linf", EPS)).judge(
        torch.tensor([[[[0.55, 0.0], [1.0, 0.3]]]]),
        torch.tensor([CLEAN]).view(1, 1, 2, 2),
        torch.tensor([0]),
    )
    assert verdicts.broken.tolist() == [False]
    assert verdicts.finite.tolist() == [False]


def test_ties_belong_to_the_label_of_the_lower_index_as_argmax_has_it() -> None:
    assert _judge([0.5, 0.0, 1.0, 0.3], CLEAN, label=0) == (False, True, 0)
    assert _judge([0.5, 0.0, 1.0, 0.3], CLEAN, label=1) == (True, True, 0)


def test_judging_goes_in_batches_without_gradients() -> None:
    sizes: list[int] = []

    def watch(batch: Tensor) -> None:
        sizes.append(len(batch))
        assert not torch.is_grad_enabled()

    model = Watching(_model(), watch)
    adjudicator = Adjudicator(model, ThreatModel.of("Linf", EPS), batch_size=4)
    inputs = images(10, (1, 2, 2))
    with threads_of(2):  # each has one thread
        verdicts = adjudicator.judge(inputs, inputs, torch.zeros(10, dtype=torch.int64))
    assert len(verdicts.size) == 10
    assert verdicts.size.eq(0).all()
    assert sizes == [4, 4, 4]  # filled up, as a few are rounded otherwise


@pytest.mark.parametrize(
    "output",
    [
        lambda x: (x,),
        lambda x: x.sum(),
        lambda x: x.flatten(1)[:1],
        lambda x: x,
    ],
)
def test_outputs_that_are_no_logits_are_refused(output: object) -> None:
    class Odd(nn.Module):
        def forward(self, inputs: Tensor) -> object:
            return output(inputs)  # type: ignore[operator]

    with pytest.raises(ModelError, match="instead of logits"):
        Adjudicator(Odd(), ThreatModel.of("Linf", EPS)).logits(images(3, (1, 2, 2)))


def test_out_of_memory_halves_the_batch_and_judges_on() -> None:
    sizes: list[int] = []

    def small_memory(batch: Tensor) -> None:
        if len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(batch))

    model = Watching(_model(), small_memory)
    adjudicator = Adjudicator(model, ThreatModel.of("Linf", EPS), batch_size=10)
    inputs = images(10, (1, 2, 2))
    assert torch.equal(adjudicator.logits(inputs), _model()(inputs))
    assert max(sizes) <= 3
    assert adjudicator.parts.size <= 3


def test_a_model_that_raises_for_one_proposal_judges_the_others() -> None:
    armed = [False]

    def refuse(batch: Tensor) -> None:
        if armed[0] and bool((batch[:, 0, 1, 1] > 0.9).any()):
            raise ValueError("no such token")

    adjudicator = Adjudicator(Watching(_model(), refuse), ThreatModel.of("Linf", EPS))
    inputs = 0.45 + 0.02 * images(8, (1, 2, 2))
    inputs[5, 0, 1, 1] = 0.95
    points = inputs + torch.tensor([0.08, 0.0, 0.0, 0.0]).view(1, 1, 2, 2)
    labels = torch.zeros(8, dtype=torch.int64)
    adjudicator.logits(inputs)
    armed[0] = True
    verdicts = adjudicator.judge(points, inputs, labels)
    assert verdicts.finite.tolist() == [index != 5 for index in range(8)]
    assert verdicts.broken.tolist() == [index != 5 for index in range(8)]
    assert verdicts.allowed.tolist() == [True] * 8
    with pytest.raises(ValueError, match="no such token"):  # asked for logits, it says why
        adjudicator.logits(inputs)
