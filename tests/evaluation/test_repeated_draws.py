"""Models with random outputs: what most draws say is what counts, and a seed gives one record."""

import random

import numpy as np
import pytest
import torch
from attack_models import ExactNetwork, images, predictions
from torch import Tensor, nn

import robench
from robench.datasets import ArrayDataset
from robench.evaluation.repeated_draws import DRAWS, MostOfDraws
from robench.records import AttackSpec, Outcome, Suite
from robench.results.stored_record import StoredRecord
from robench.seeding import own_stream

N = 12


def attack(name: str, **params: float | str) -> AttackSpec:
    return AttackSpec(name=name, attack=name.partition("-")[0], params=params)


SUITE = Suite(
    name="mine",
    attacks=(
        attack("pgd", steps=2),
        attack("apgd-rand", steps=2, eot=2),
        attack("square", queries=6),
    ),
)


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


def evaluate(model: nn.Module, seed: int = 0) -> list[StoredRecord]:
    inputs = images(N, seed=1)
    data = ArrayDataset(inputs, predictions(ExactNetwork(), inputs), name="toy", num_classes=6)
    return robench.evaluate(
        model,
        data,
        SUITE,
        threat_model="Linf-0.00001",
        input={"channels": 1},
        device="cpu",
        seed=seed,
    )


@pytest.mark.parametrize(
    "source",
    ["torch", *(pytest.param(name, marks=pytest.mark.slow) for name in ("numpy", "python"))],
)
def test_a_seldom_wrong_model_keeps_its_accuracy_and_a_seed_gives_one_record(source: str) -> None:
    one = evaluate(Swapping(0.1, source))
    # Where the caller's generators stand makes no difference, and there they stay.
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    other = evaluate(Swapping(0.1, source))
    after = torch.get_rng_state(), np.random.get_state(), random.getstate()
    assert torch.equal(before[0], after[0])
    assert repr(before[1:]) == repr(after[1:])
    for mine, theirs in zip(one, other, strict=True):
        assert mine.record.count(Outcome.SURVIVED) == N
        flags = {flag.name: flag.severity for flag in mine.record.flags}
        assert (flags["randomised"], flags["judged_by_draws"]) == ("severe", "note")
        assert any("aa-rand" in flag.evidence for flag in mine.record.flags)
        columns = ["outcome", "adv_margin", "adv_prediction", "forwards", "perturbation_size"]
        assert mine.table[columns].equals(theirs.table[columns])


def test_a_stream_of_its_own_is_that_of_its_seed_for_torch_numpy_and_python() -> None:
    drawn = []
    for seed in (3, 4, 3):
        with own_stream(seed, torch.device("cpu")):
            drawn.append((float(torch.rand(1)), np.random.rand(), random.random()))
        torch.rand(1), np.random.rand(), random.random()
    assert drawn[0] == drawn[2]
    assert all(one != other for one, other in zip(drawn[0], drawn[1], strict=True))


def test_a_mostly_wrong_model_is_wrong() -> None:
    (record, *_) = evaluate(Swapping(0.9))
    assert record.record.count(Outcome.CLEAN_ERROR) == N


def test_a_steady_model_is_judged_by_its_one_answer() -> None:
    for stored in evaluate(ExactNetwork()):
        assert not {"randomised", "judged_by_draws"} & {flag.name for flag in stored.record.flags}


def test_votes_are_shares_and_ties_go_by_probability() -> None:
    class Turns(nn.Module):
        """Answers 0 and 1 in turns, and is surer of 1."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, inputs: Tensor) -> Tensor:
            self.calls += 1
            return torch.tensor([[1.0, 0.0, -9.0] if self.calls % 2 else [0.0, 3.0, -9.0]])

    model = Turns()
    votes = MostOfDraws(model, seed=0)(torch.zeros(1, 1, 2, 2))
    assert model.calls == DRAWS
    assert int(votes.argmax()) == 1
    torch.testing.assert_close(votes, torch.tensor([[0.5, 0.5, 0.0]]), rtol=0, atol=0.5 / DRAWS)


def test_an_answer_that_is_not_finite_has_no_winner() -> None:
    class Broken(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return torch.stack((inputs.flatten(), inputs.flatten() + 1), dim=1)

    votes = MostOfDraws(Broken(), 0)(torch.tensor([1.0, torch.inf])[:, None])
    assert int(votes[0].argmax()) == 1
    assert bool(votes[1].isnan().all())
