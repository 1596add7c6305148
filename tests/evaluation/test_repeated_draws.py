"""Models with random outputs: half of a sample's own draws decide, and a seed gives one record."""

import logging
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from attack_models import ExactNetwork, images, predictions
from torch import Tensor, nn

import robench
from robench.acceleration.search_models import SearchModel
from robench.attacks.apgd import APGD
from robench.attacks.losses import LOSSES, Loss
from robench.datasets import ArrayDataset
from robench.errors import UsageError
from robench.evaluation.averaged_model import AveragedModel, averaged, without_draws_of_its_own
from robench.evaluation.randomised import error_rates
from robench.evaluation.repeated_draws import (
    Draws,
    DrawsAdjudicator,
    VotesOfDraws,
    by_majority,
)
from robench.evaluation.runner import kept_record
from robench.models import wrap_module
from robench.records import AttackSpec, Outcome, Suite
from robench.records.draws import DEFAULT_DRAWS, margin_of, own_of
from robench.results import Store
from robench.seeding import own_stream
from robench.statistics import exact
from robench.threat_models import ThreatModel

N = 6


def attack(name: str, **params: float | str) -> AttackSpec:
    return AttackSpec(name=name, attack=name.partition("-")[0], params=params)


SUITE = Suite(
    name="mine",
    attacks=(
        attack("pgd", steps=1),
        attack("pgd-cw", steps=2, loss="margin"),
        attack("apgd-rand", steps=2, eot=5),
        attack("fab", steps=1, targets=1),
        attack("square", queries=6),
    ),
)


SHORT = Suite(name="short", attacks=(attack("pgd", steps=2), attack("square", queries=3)))


class Swapping(nn.Module):
    """Swaps its two best classes in a share of its answers, by torch, NumPy or Python's draws."""

    def __init__(self, share: float, source: str = "torch") -> None:
        super().__init__()
        self.inner = ExactNetwork()
        self.share = share
        self.source = source

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.inner(inputs)
        if self.source == "torch":
            drawn = torch.rand(len(logits))
        elif self.source == "numpy":
            drawn = torch.from_numpy(np.random.rand(len(logits)))
        else:
            drawn = torch.tensor([random.random() for _ in range(len(logits))])
        top = logits.topk(2, dim=1).indices
        swapped = logits.scatter(1, top, logits.gather(1, top.flip(1)))
        return torch.where((drawn < self.share)[:, None], swapped, logits)


class Noisy(nn.Module):
    """Adds noise to its inputs."""

    def __init__(self, inner: nn.Module, scale: float) -> None:
        super().__init__()
        self.inner = inner
        self.scale = scale

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.inner(inputs + self.scale * torch.randn_like(inputs))
        return out


def evaluate(
    model: nn.Module, suite: Any = SUITE, eps: float = 1e-5, n: int = N, **fields: Any
) -> robench.Evaluation:
    inputs = images(n, seed=1)
    data = ArrayDataset(inputs, predictions(ExactNetwork(), inputs), name="toy", num_classes=6)
    return robench.evaluate(
        model,
        data,
        suite,
        threat_model=f"Linf-{eps:.5f}",
        input={"channels": 1},
        device="cpu",
        **fields,
    )


@pytest.mark.parametrize(
    "source",
    ["torch", *(pytest.param(name, marks=pytest.mark.slow) for name in ("numpy", "python"))],
)
def test_a_seed_gives_one_record(source: str) -> None:
    one = evaluate(Swapping(0.1, source), SHORT)
    # Where the caller's generators stand makes no difference, and there they stay.
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    other = evaluate(Swapping(0.1, source), SHORT)
    after = torch.get_rng_state(), np.random.get_state(), random.getstate()
    assert torch.equal(before[0], after[0])
    assert repr(before[1:]) == repr(after[1:])
    for mine, theirs in zip(one, other, strict=True):
        assert mine.record.count(Outcome.SURVIVED) == N
        flags = {flag.name: flag.severity for flag in mine.record.flags}
        assert (flags["randomised"], flags["judged_by_draws"]) == ("severe", "note")
        assert any("--draws" in flag.evidence for flag in mine.record.flags)
        columns = ["outcome", "adv_margin", "adv_prediction", "forwards", "perturbation_size"]
        assert mine.table[columns].equals(theirs.table[columns])


def test_a_seldom_wrong_model_keeps_its_accuracy() -> None:
    for stored in evaluate(Swapping(0.1)):
        assert stored.record.count(Outcome.SURVIVED) == N


def test_a_stream_of_its_own_is_that_of_its_seed_for_torch_numpy_and_python() -> None:
    drawn = []
    for seed in (3, 4, 3):
        with own_stream(seed, torch.device("cpu")):
            drawn.append((float(torch.rand(1)), np.random.rand(), random.random()))
        torch.rand(1), np.random.rand(), random.random()
    assert drawn[0] == drawn[2]
    assert all(one != other for one, other in zip(drawn[0], drawn[1], strict=True))


def test_a_mostly_wrong_model_is_wrong() -> None:
    (record, *_) = evaluate(Swapping(0.9), SHORT)
    assert record.record.count(Outcome.CLEAN_ERROR) == N


def test_a_steady_model_is_judged_by_its_one_answer() -> None:
    for stored in evaluate(ExactNetwork(), SHORT):
        assert not {"randomised", "judged_by_draws"} & {flag.name for flag in stored.record.flags}


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["quick", "standard", "aa-standard", "aa-rand", "fast", "strong"])
def test_a_seldom_wrong_model_keeps_its_accuracy_under_every_suite(suite: str) -> None:
    for stored in evaluate(Swapping(0.1), suite, n=6):
        assert (stored.record.n, stored.record.count(Outcome.SURVIVED)) == (6, 6)


PLANE_EPS, PLANE_N = 0.1, 200


class Plane(nn.Module):
    """Two classes, z = ±w·(x − ½)."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.register_buffer("weight", torch.randn(36, generator=generator))

    def forward(self, inputs: Tensor) -> Tensor:
        height = (inputs.flatten(1) - 0.5) @ self.weight
        return torch.stack((height, -height), dim=1)


def test_noise_of_half_the_radius_leaves_the_mean_predictors_robust_accuracy() -> None:
    plane = Plane()
    # Heights are spread evenly to twice what the ball reaches, and the balls are in the box.
    slope = plane.weight.view(6, 6)
    drawn = torch.rand(PLANE_N, 1, 6, 6, generator=torch.Generator().manual_seed(1)) - 0.5
    wanted = torch.linspace(-2, 2, PLANE_N) * PLANE_EPS * slope.abs().sum()
    height = (drawn * slope).sum((1, 2, 3)) * 0.2
    away = (wanted - height).view(-1, 1, 1, 1) * slope.sign() / slope.abs().sum()
    inputs = 0.5 + 0.2 * drawn + away
    assert ((inputs > PLANE_EPS) & (inputs < 1 - PLANE_EPS)).all()
    heights = (inputs.flatten(1) - 0.5) @ plane.weight
    labels = (heights < 0).long()
    # A corner of the ball is as far as a linear model can be led: height ∓ ε·‖w‖₁.
    reach = PLANE_EPS * float(plane.weight.abs().sum())
    robust = 100 * float((heights.abs() > reach).float().mean())
    assert 40 < robust < 60
    data = ArrayDataset(inputs, labels, name="plane", num_classes=2)
    (found,) = robench.evaluate(
        Noisy(plane, PLANE_EPS / 2),
        data,
        Suite(name="mine", attacks=(attack("pgd", steps=4, relative_step_size=0.5),)),
        threat_model=f"Linf-{PLANE_EPS}",
        input={"channels": 1},
        draws=100,
    )
    assert abs(100 * found.record.count(Outcome.SURVIVED) / PLANE_N - robust) <= 2
    # A sample whose margin noise often swamps is wrong as often as a normal distribution says.
    sigma = PLANE_EPS / 2 * float(plane.weight.norm())
    expected = torch.special.ndtr(-heights.abs() / sigma).double().numpy()
    table = found.table
    inside = (table["clean_error_rate_low"] <= expected) & (
        expected <= table["clean_error_rate_high"]
    )
    assert inside.mean() >= 0.95 - 0.03


COLUMNS = (
    *("outcome", "clean_margin", "adv_margin", "adv_prediction", "perturbation_size"),
    *("clean_error_rate", "adv_error_rate", "adv_error_rate_low", "adv_error_rate_high"),
)


def test_the_batch_changes_no_record_of_random_outputs_but_the_seed_does() -> None:
    def noisy(**fields: Any) -> list[Any]:
        found = evaluate(Noisy(ExactNetwork(), 0.05), SHORT, eps=0.05, draws=9, n=9, **fields)
        return [stored.table[list(COLUMNS)] for stored in found]

    one, other = noisy(), noisy(batch_size=4)
    assert any((table["outcome"] == "broken").any() for table in one)
    assert any((table["outcome"] == "survived").any() for table in one)
    assert all(mine.equals(theirs) for mine, theirs in zip(one, other, strict=True))
    assert not all(mine.equals(theirs) for mine, theirs in zip(one, noisy(seed=1), strict=True))


def test_a_record_says_how_it_was_judged_and_how_often_samples_are_wrong() -> None:
    suite = Suite(name="mine", attacks=(attack("pgd", steps=1),))
    (found,) = evaluate(Swapping(0.3), suite, draws=50)
    told = found.record.repeated_draws
    assert told is not None
    assert (found.record.draws, told.verdict, told.by_sample) == (50, 50, True)
    assert found.record.has_its_key()
    # Who says how many draws decide means the randomness.
    assert {f.severity for f in found.record.flags if f.name == "randomised"} == {"warning"}
    table = found.table
    assert 0.2 < table["clean_error_rate"].mean() < 0.4
    for _, row in table.iterrows():
        rate = exact(round(50 * row["clean_error_rate"]), 50)
        assert (rate.low, rate.high) == (row["clean_error_rate_low"], row["clean_error_rate_high"])
    # The draws of a sample are the same with a perturbation that changes nothing.
    assert table["clean_error_rate"].equals(table["adv_error_rate"])
    (other,) = evaluate(Swapping(0.3), suite, draws=51)
    assert other.record.key != found.record.key


def test_who_says_no_number_of_draws_is_told_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    suite = Suite(name="mine", attacks=(attack("pgd", steps=1),))
    with caplog.at_level(logging.WARNING, "robench"):
        (found,) = evaluate(Swapping(0.1), suite, name="coin")
    (line,) = [r.getMessage() for r in caplog.records if "random" in r.getMessage()]
    assert all(word in line for word in ("coin", "--draws K", str(DEFAULT_DRAWS)))
    assert found.record.draws is None
    with pytest.raises(UsageError, match="draws is 1"):
        robench.Request(draws=1)


def test_an_older_record_of_random_outputs_is_made_again(tmp_path) -> None:
    suite = Suite(name="mine", attacks=(attack("pgd", steps=1),))
    (found,) = evaluate(Swapping(0.1), suite, results=tmp_path)
    store, key = Store(tmp_path), found.record.key
    assert kept_record(store, key, adversarial=False) is not None
    older = found.record.model_copy(update={"repeated_draws": None})
    store.write(older, found.samples)
    assert kept_record(store, key, adversarial=False) is None


def draws_of(keyed: bool = True) -> Draws:
    return Draws(0, frozenset({1}), keyed)


def test_votes_are_shares_and_half_of_them_are_enough_for_a_label_but_not_for_a_target() -> None:
    class Turns(nn.Module):
        """Answers 0 and 1 in turns, and is surer of 1."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, inputs: Tensor) -> Tensor:
            self.calls += 1
            one = [1.0, 0.0, -9.0] if self.calls % 2 else [0.0, 3.0, -9.0]
            return torch.tensor([one]).expand(len(inputs), 3)

    model = Turns()
    votes = VotesOfDraws(model, draws_of(), 32)(torch.zeros(1, 1, 2, 2))
    assert model.calls == 32
    torch.testing.assert_close(votes, torch.tensor([[0.5, 0.5, 0.0]]), rtol=0, atol=0.5 / 32)
    for label in (0, 1):
        at = torch.tensor([label])
        assert int(by_majority(votes, at, 32).argmax()) == label
        assert int(by_majority(votes, at, 32, towards=True).argmax()) == 1 - label


def test_more_than_half_wrong_is_wrong_though_no_other_class_has_more() -> None:
    votes = torch.tensor([[0.4, 0.3, 0.3]])
    said = by_majority(votes, torch.tensor([0]), 10)
    assert int(said.argmax()) != 0
    assert float(said[0, 0] - said[0, 1:].max()) == pytest.approx((2 * 4 - 10 + 0.5) / 10)


@pytest.mark.parametrize("towards", [False, True])
def test_a_margin_tells_how_many_draws_there_were(towards: bool) -> None:
    for draws in (2, 7, 32, 1001):
        for own in range(0, draws + 1, max(1, draws // 40)):
            lead = float(np.float32(margin_of(own, draws, towards)))
            assert own_of(lead, draws, towards) == own
            assert (lead > 0) == (2 * own > draws or (2 * own == draws and not towards))
            rates = error_rates("adv", -lead if towards else lead, draws, towards)
            assert rates["adv_error_rate"] == (own if towards else draws - own) / draws


def test_an_answer_that_is_not_finite_has_no_winner() -> None:
    class Broken(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return torch.stack((inputs.flatten(), inputs.flatten() + 1), dim=1)

    votes = VotesOfDraws(Broken(), draws_of(), 8)(torch.tensor([1.0, torch.inf])[:, None])
    assert int(votes[0].argmax()) == 1
    assert bool(votes[1].isnan().all())
    assert bool(by_majority(votes, torch.tensor([1, 1]), 8)[1].isnan().all())


def test_a_find_is_no_find_if_draws_that_nothing_was_chosen_by_say_otherwise() -> None:
    class LuckyOnce(nn.Module):
        """Wrong in its first 8 passes, right in all others."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, inputs: Tensor) -> Tensor:
            self.calls += 1
            right = torch.tensor([2.0, 1.0])
            return (right.flip(0) if self.calls <= 8 else right).expand(len(inputs), 2)

    inputs, labels = torch.zeros(5, 1, 2, 2), torch.zeros(5, dtype=torch.int64)
    model = LuckyOnce()
    judge = DrawsAdjudicator(VotesOfDraws(model, draws_of(), 8), ThreatModel.of("Linf", 0.1))
    verdicts = judge.judge(inputs, inputs, labels)
    assert model.calls == 16
    assert not verdicts.broken.any()
    assert verdicts.prediction.tolist() == [0] * 5
    model.calls = -8  # wrong twice
    assert judge.judge(inputs, inputs, labels).broken.all()


class Tilting(nn.Module):
    """A slope whose direction is drawn: w, or a vector at a right angle to it."""

    def forward(self, inputs: Tensor) -> Tensor:
        flat = inputs.flatten(1)
        height = flat[:, 0] + torch.randn(len(flat)) * flat[:, 1]
        return torch.stack((height, -height), dim=1)


def test_what_searches_see_is_a_mean_of_as_many_draws_as_it_takes() -> None:
    inputs, labels = torch.rand(16, 1, 2, 2), torch.zeros(16, dtype=torch.int64)
    model = wrap_module(Tilting(), num_classes=2, input={"channels": 1})
    draws = Draws.of(model, inputs[:8], seed=0)
    steady = averaged(wrap_module(Plane(), num_classes=2), draws, torch.rand(4, 1, 6, 6), labels)
    assert steady.count == 4
    # Two means of k draws have the cosine 1 / (1 + 1/k) on average, roughly: 0.94 at 16.
    search = averaged(model, draws, inputs, labels)
    assert search.count in (16, 32)
    assert (search.passes, search.logit_passes) == (search.count, search.count)
    loss = Loss(LOSSES["margin"], labels, labels)
    slopes = search.with_draws(100).gradient(inputs, loss).gradient.flatten(1)
    # The margin's loss is −2·height: the mean of its gradients is (−2, 0 ± 2/√100, 0, 0).
    assert torch.allclose(slopes[:, 0], torch.full((16,), -2.0))
    assert float(slopes[:, 1].abs().max()) < 4 * 2 / 10
    logits = search.with_draws(100).logits(inputs)
    assert float((logits[:, 0] - inputs[:, 0, 0, 0]).abs().max()) < 4 / 10
    for rows in (slice(0, 7), slice(7, 16)):
        assert torch.equal(search.logits(inputs[rows]), search.logits(inputs)[rows])


def test_an_attack_that_averages_itself_asks_an_averaged_model_once() -> None:
    apgd = APGD(ThreatModel.of("Linf", 0.1), eot=20)
    plain = SearchModel(Plane())
    assert without_draws_of_its_own(apgd, plain) == (apgd, plain)
    mean = AveragedModel.of(plain, draws_of(), 4)
    asking, model = without_draws_of_its_own(apgd, mean)
    assert (asking.eot, model.passes, model.logit_passes) == (1, 20, 20)
    assert without_draws_of_its_own(replace(apgd, eot=1), mean)[1] is mean
