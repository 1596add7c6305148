"""What a search spends, drops, keeps and survives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from attack_models import (
    DoubleInside,
    ExactNetwork,
    LinearModel,
    TinyCNN,
    Watching,
    images,
    linear_problem,
    predictions,
    run_search,
)
from torch import Tensor, nn

from robench import seeding
from robench.acceleration.search_models import SearchModel
from robench.attacks.apgd import APGD
from robench.attacks.base import Attack, slot_keys
from robench.attacks.carlini_wagner import CarliniWagnerL2
from robench.attacks.fab import FAB
from robench.attacks.pgd import PGD, PGDState
from robench.attacks.square import Square
from robench.evaluation.cascade_state import PhaseCounts
from robench.evaluation.samples import SearchResult
from robench.geometry import norm_of
from robench.threat_models import ThreatModel

TINY_EPS = 1e-4


def _survivors(classes: int = 10) -> tuple[nn.Module, Tensor, Tensor]:
    """Samples that nothing breaks within a tiny radius."""
    model = DoubleInside(TinyCNN(classes=classes, seed=2))
    inputs = images(60, seed=8)
    with torch.no_grad():
        top = model(inputs).topk(2, dim=1)
    clear = (top.values[:, 0] - top.values[:, 1]) > 0.1
    return model, inputs[clear][:9], top.indices[clear, 0][:9]


LINF = ThreatModel.of("Linf", TINY_EPS)
L2 = ThreatModel.of("L2", TINY_EPS)
BUDGETS: list[tuple[str, Attack[Any], int, int, tuple[int, int]]] = [
    # name, attack, forwards and backwards by formula, the reference's at the full budget
    ("fgsm", PGD(LINF, steps=1, random_start=False), 2, 1, (2, 1)),
    ("pgd-20-l2", PGD(L2, steps=20), 21, 20, (21, 20)),
    ("apgd-ce", APGD(LINF, steps=100), 101, 100, (103, 101)),
    ("apgd-ce-l2", APGD(L2, steps=100), 101, 100, (103, 101)),
    (
        "apgd-t",
        APGD(LINF, steps=100, loss="dlr-targeted", targets=9),
        909,
        900,
        (920, 909),
    ),
    ("fab-t", FAB(LINF, steps=100, targets=9), 1800, 900, (1829, 900)),
    ("cw-l2", CarliniWagnerL2(L2, rounds=2, steps=10), 21, 20, (21, 20)),
    ("fab", FAB(L2, steps=5, targets=0), 10, 50, (10, 50)),
]


@pytest.mark.parametrize(
    ("attack", "forwards", "backwards", "reference"),
    [pytest.param(*case[1:], id=case[0]) for case in BUDGETS],
)
def test_passes_of_a_surviving_sample(
    attack: Attack[Any],
    forwards: int,
    backwards: int,
    reference: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What small passes are filled up with is counted nowhere.
    monkeypatch.setattr("robench.evaluation.queries.filled", lambda part, *_: part)
    model, inputs, labels = _survivors()
    seen = {"inputs": 0}

    def watch(batch: Tensor) -> None:
        seen["inputs"] += len(batch)

    search = SearchModel(Watching(model, watch))
    few = slice(0, 3)
    run = run_search(attack, model, inputs[few], labels[few], search=search)
    assert not bool(run.found.broken.any())
    assert run.found.forwards.tolist() == [forwards] * 3
    assert run.found.backwards.tolist() == [backwards] * 3
    assert forwards <= reference[0]
    assert backwards <= reference[1]
    assert seen["inputs"] == int(run.found.forwards.sum())  # nothing goes uncounted


@pytest.mark.parametrize(("threat_model", "share"), [(LINF, 0.8), (L2, 0.9)])
def test_square_asks_no_more_than_its_budget(threat_model: ThreatModel, share: float) -> None:
    model, inputs, labels = _survivors()
    found = run_search(Square(threat_model, queries=700), model, inputs[:3], labels[:3]).found
    assert bool((found.forwards < share * 701).all())  # repeated proposals are not asked again
    assert bool((found.forwards > 50).all())


def test_square_asks_its_whole_budget_where_nothing_repeats() -> None:
    model = DoubleInside(TinyCNN(channels=3, side=16, seed=2))
    inputs = images(3, (3, 16, 16), seed=8)
    found = run_search(Square(L2, queries=120), model, inputs, predictions(model, inputs)).found
    assert not bool(found.broken.any())
    assert found.forwards.tolist() == [121] * 3  # the reference: 124


def test_eot_multiplies_the_passes() -> None:
    model, inputs, labels = _survivors()
    found = run_search(APGD(LINF, steps=7, eot=4), model, inputs, labels).found
    assert found.forwards.tolist() == [8 * 4] * len(labels)
    assert found.backwards.tolist() == [7 * 4] * len(labels)


def test_pgd_notices_a_repetition_and_says_the_same() -> None:
    model = DoubleInside(TinyCNN(classes=6, seed=2))
    inputs = images(24, seed=8)
    labels = predictions(model, inputs)
    threat_model = ThreatModel.of("Linf", 0.15)
    runs = []
    for can_repeat in (True, False):
        attack = PGD(threat_model, steps=60, restarts=2)
        assert attack.can_repeat
        attack.can_repeat = can_repeat
        runs.append(run_search(attack, model, inputs, labels).found)
    with_it, without = runs
    for name in ("broken", "search", "adv_inputs", "closest_margin"):
        assert torch.equal(getattr(with_it, name), getattr(without, name)), name
    survived = ~without.broken
    assert 2 < int(survived.sum()) < 22
    assert without.forwards[survived].tolist() == [122] * int(survived.sum())
    assert float(with_it.forwards[survived].sum()) < 0.6 * float(without.forwards[survived].sum())


def test_broken_samples_are_dropped_at_once() -> None:
    """No pass follows the find, in no other search."""
    model, inputs, labels, distance, threat_model = linear_problem("Linf", 2)
    breakable = distance < 0.5 * threat_model.radius
    attack = PGD(threat_model, steps=30, relative_step_size=1.0, random_start=False, restarts=3)
    found = run_search(attack, model, inputs, labels, batch_size=4).found
    # Clean point, one step: two forwards and one backward, and the gradient at the find's point,
    # which is asked for together with its logits.
    assert found.forwards[breakable].unique().tolist() == [2]
    assert found.backwards[breakable].unique().tolist() == [2]


def test_a_run_goes_on_when_every_start_settles_its_search() -> None:
    """Fewer slots than samples, and all of them broken before the first step."""
    inputs = images(23, (1, 2, 2))
    model = LinearModel(torch.zeros(2, 4), torch.tensor([1.0, 0.0]))
    labels = torch.ones(23, dtype=torch.int64)
    for attack in (APGD(LINF, steps=3), Square(LINF, queries=3)):
        found = run_search(attack, model, inputs, labels, batch_size=5).found
        assert bool(found.broken.all())
        assert found.forwards.tolist() == [1] * 23


def test_minimum_norm_attacks_go_on_after_the_first_find() -> None:
    model, inputs, labels, distance, _ = linear_problem("L2", 2, count=16)
    wide = ThreatModel.of("L2", 1.0)
    attack = CarliniWagnerL2(wide, rounds=4, steps=40, learning_rate=0.015)
    found = run_search(attack, model, inputs, labels).found
    assert bool(found.broken.all())
    assert found.forwards.tolist() == [160] * 16
    assert bool((found.found_size >= distance - 1e-6).all())
    size = norm_of((found.adv_inputs - inputs).double(), "L2")
    torch.testing.assert_close(size, found.found_size.double(), atol=1e-6, rtol=1e-5)


# --- models that fail ------------------------------------------------------------------------


class _Marked(nn.Module):
    """Fails on inputs whose first pixel says so: the corner is never changed by the search."""

    def __init__(self, module: nn.Module, failure: Any, limit: float) -> None:
        super().__init__()
        self.module = module
        self.failure = failure
        self.limit = limit
        self.armed = True

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.module(inputs)
        marked = inputs[:, 0, 0, 0] > self.limit
        if not self.armed or not bool(marked.any()):
            return logits
        if isinstance(self.failure, Exception):
            raise self.failure
        return torch.where(marked[:, None], self.failure, logits)


def _failing_run(attack: Attack[Any], failure: Any, batch_size: int = 64) -> tuple[Any, Any]:
    """The same attack on a model that fails for samples 3 and 10, and on a sound one."""
    inputs = images(20, seed=8) * 0.8
    bad = torch.tensor([3, 10])
    inputs[bad, 0, 0, 0] = 0.99
    model = ExactNetwork()
    labels = predictions(model, inputs)
    sound = run_search(attack, model, inputs, labels, batch_size=batch_size).found
    failing = SearchModel(_Marked(model, failure, limit=0.9))
    found = run_search(attack, model, inputs, labels, batch_size=batch_size, search=failing).found
    return found, sound


ATTACKS = [
    PGD(ThreatModel.of("Linf", 0.02), steps=6),
    APGD(ThreatModel.of("Linf", 0.02), steps=8, loss="dlr-targeted", targets=3),
    FAB(ThreatModel.of("Linf", 0.02), steps=4, targets=0),
    FAB(ThreatModel.of("L2", 0.1), steps=4, targets=3),
    Square(ThreatModel.of("Linf", 0.02), queries=30),
]
FAILURES = [
    (RuntimeError("shape mismatch\nsecond line"), "RuntimeError: shape mismatch"),
    (AssertionError("Input height does not match"), "AssertionError: Input height does not match"),
    (KeyError("token"), "KeyError: 'token'"),
    (ValueError(), "ValueError: ValueError"),
    (torch.tensor(float("nan")), "the model returned non-finite logits"),
    (torch.tensor(float("inf")), "the model returned non-finite logits"),
]


@pytest.mark.parametrize(
    ("attack", "failure", "message"),
    [
        pytest.param(
            attack,
            *failure,
            id=f"{attack.name}-{attack.threat_model.norm}-{str(failure[0])[:24]}",
            # Quick: every attack with a failure and with what is not finite, and every failure.
            marks=[] if attack is ATTACKS[0] or failure in FAILURES[-2:] else pytest.mark.slow,
        )
        for attack in ATTACKS
        for failure in FAILURES
    ],
)
def test_failures_concern_their_own_samples(
    attack: Attack[Any], failure: Any, message: str
) -> None:
    found, sound = _failing_run(attack, failure)
    assert found.errors == {3: message, 10: message}
    assert not bool(found.broken[[3, 10]].any())
    assert bool((found.forwards[[3, 10]] <= 6).all())  # at most two passes in each search
    others = torch.tensor([i for i in range(20) if i not in (3, 10)])
    for name in ("broken", "search", "adv_inputs", "closest_margin"):
        assert torch.equal(getattr(found, name)[others], getattr(sound, name)[others]), name
    assert bool(sound.broken.any())


class _FailsFromRank(nn.Module):
    """Fails for good after a number of passes over the marked sample."""

    def __init__(self, module: nn.Module, after: int) -> None:
        super().__init__()
        self.module = module
        self.left = after

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.module(inputs)
        marked = inputs[:, 0, 0, 0] > 0.9
        if bool(marked.any()) and inputs.requires_grad:
            self.left -= int(marked.sum())
        if self.left < 0:
            return torch.where(marked[:, None], torch.nan, logits)
        return logits


def test_an_error_in_a_later_search_does_not_undo_an_earlier_find() -> None:
    """Run beside each other, or one after the other: the first's find is the outcome."""
    model = LinearModel(torch.tensor([[1.0] * 4, [-1.0] * 4]), torch.tensor([0.0, 3.99]))
    inputs = torch.tensor([0.99, 0.4, 0.4, 0.4]).view(1, 1, 2, 2)
    labels = predictions(model, inputs)

    class FailsInRankOne(PGD):
        """Rank 1 asks about a point with which the model cannot do anything."""

        def step(self, query: Any, state: Any) -> Any:
            if bool((state.keys == rank_one).any()):
                rows = (state.keys == rank_one).nonzero().squeeze(1)
                query.logits(torch.full_like(state.inputs[rows], torch.nan), rows)
            return super().step(query, state)

    attack = FailsInRankOne(
        ThreatModel.of("Linf", 0.2), steps=4, relative_step_size=0.5, random_start=False, restarts=2
    )
    keys = seeding.sample_keys(0, ["sample-0"])
    rank_one = int(slot_keys(keys, attack.name, torch.tensor([1])))
    for batch_size in (1, 8):
        found = run_search(attack, model, inputs, labels, batch_size=batch_size).found
        assert found.broken.tolist() == [True]
        assert found.search.tolist() == [0]
        assert found.errors == {}


def test_an_error_ends_a_sample_whose_earlier_searches_found_nothing() -> None:
    model, inputs, labels = _survivors()
    attack = APGD(LINF, steps=5, restarts=3)
    inputs = inputs * 0.8
    labels = predictions(model, inputs)
    inputs[2, 0, 0, 0] = 0.99
    labels[2] = predictions(model, inputs[2:3])
    for batch_size in (1, 64):
        search = SearchModel(_FailsFromRank(model, after=3))
        found = run_search(
            attack, model, inputs, labels, search=search, batch_size=batch_size
        ).found
        assert list(found.errors) == [2]
        assert not bool(found.broken[2])
        assert torch.equal(found.adv_inputs[2], inputs[2])


def test_out_of_memory_halves_the_batch_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each halving collects garbage, of which a process with all tests holds much.
    monkeypatch.setattr("robench.devices.gc.collect", lambda: 0)
    inputs = images(50, seed=8)
    model = ExactNetwork()
    labels = predictions(model, inputs)
    sizes: list[int] = []

    def small_memory(batch: Tensor) -> None:
        if len(batch) > 9:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        sizes.append(len(batch))

    attack = PGD(ThreatModel.of("Linf", 0.02), steps=8)
    plain = run_search(attack, model, inputs, labels, batch_size=50).found
    search = SearchModel(Watching(model, small_memory))
    run = run_search(attack, model, inputs, labels, batch_size=50, search=search)
    for name in ("broken", "search", "adv_inputs", "closest_margin", "forwards", "backwards"):
        assert torch.equal(getattr(run.found, name), getattr(plain, name)), name
    assert run.found.errors == {}
    assert max(sizes) <= 9
    assert run.search.queries.parts.size <= 9
    assert run.search.queries.parts.halvings <= 8  # learnt once, not at every step


# --- finds that are none -----------------------------------------------------------------------


class _Shifted(nn.Module):
    """A search model that believes class 1 to be likelier than it is."""

    def __init__(self, module: nn.Module, shift: float) -> None:
        super().__init__()
        self.module = module
        self.shift = shift

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.module(inputs)
        return logits + torch.tensor([0.0, self.shift])


def test_a_find_that_fails_with_the_original_is_none_and_the_search_goes_on() -> None:
    """In one dimension: the search crosses its own boundary steps before the model's."""
    model = LinearModel(torch.tensor([[-1.0], [0.0]]), torch.tensor([0.55, 0.0]))
    inputs, labels = torch.tensor([[[[0.5]]], [[[0.3]]]]), torch.tensor([0, 0])
    attack = PGD(ThreatModel.of("Linf", 0.1), steps=10, relative_step_size=0.1, random_start=False)
    search = SearchModel(_Shifted(model, 0.03))
    run = run_search(attack, model, inputs, labels, search=search)
    # The search sees 0.52 as misclassified, the model only what lies beyond 0.55.
    assert run.found.broken.tolist() == [True, False]
    assert float(run.found.adv_inputs[0]) > 0.55


@pytest.mark.parametrize("shift", [0.0, -0.002])
def test_near_misses_of_an_inexact_search_are_judged_too(shift: float) -> None:
    """A search that sees the margin too large by less than its tolerance still finds."""
    model = LinearModel(torch.tensor([[-1.0], [0.0]]), torch.tensor([0.5995, 0.0]))
    inputs, labels = torch.tensor([[[[0.5]]]]), torch.tensor([0])
    attack = PGD(ThreatModel.of("Linf", 0.1), steps=10, relative_step_size=0.1, random_start=False)
    search = SearchModel(_Shifted(model, shift), tolerance=0.005)
    assert run_search(attack, model, inputs, labels, search=search).found.broken.tolist() == [True]
    blind = SearchModel(_Shifted(model, -0.002), tolerance=0.0)
    # Without a tolerance the last word on the closest point still belongs to the original.
    assert run_search(attack, model, inputs, labels, search=blind).found.broken.tolist() == [True]


@pytest.mark.parametrize("name", ["pgd", "apgd-t", "square", "fab-t"])
def test_a_bfloat16_search_breaks_nothing_that_is_not_broken(name: str) -> None:
    """Verdicts of a coarse search hold in float32, and lose little against a float32 search."""
    threat_model = ThreatModel.of("Linf", 0.2)
    attack: Attack[Any] = {
        "pgd": PGD(threat_model, steps=6),
        "apgd-t": APGD(threat_model, steps=8, loss="dlr-targeted", targets=4),
        "square": Square(threat_model, queries=80),
        "fab-t": FAB(threat_model, steps=6, targets=4),
    }[name]
    model = TinyCNN(classes=6, seed=2)
    inputs = images(40, seed=8)
    labels = predictions(model, inputs)

    class Coarse(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            return model(points).bfloat16().float()

    exact = run_search(attack, model, inputs, labels).found
    found = run_search(
        attack, model, inputs, labels, search=SearchModel(Coarse(), tolerance=0.05)
    ).found
    assert torch.equal(predictions(model, found.adv_inputs) != labels, found.broken)
    assert 3 < int(exact.broken.sum()) < 37
    assert abs(int(found.broken.sum()) - int(exact.broken.sum())) <= 3


def _counts(found: SearchResult) -> PhaseCounts:
    rows = torch.arange(len(found.broken))
    return PhaseCounts(rows).plus(rows, found)


class _Rooted(nn.Module):
    """A square root at zero: finite value, infinite slope."""

    def forward(self, points: Tensor) -> Tensor:
        root = (points.flatten(1).sum(dim=1) * 0).sqrt()
        return torch.stack((1 + root, root * 0, root * 0 - 1), dim=1)


class _FlatWhereDark(nn.Module):
    """Linear, but for dark images, whose logits do not depend on the pixels."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.tensor([[0.0] * 4, [1.0] * 4, [0.0, 0.0, 0.0, 1.0]])
        self.linear = LinearModel(weight, torch.tensor([10.0, 0.0, 0.0]))

    def forward(self, points: Tensor) -> Tensor:
        dark = points.flatten(1).amax(dim=1, keepdim=True) < 0.1
        return self.linear(torch.where(dark[:, :, None, None], points * 0, points))


WATCHED = [
    (APGD(LINF, steps=3, loss="dlr", restarts=2), 2),
    (APGD(LINF, steps=3, loss="dlr", eot=5), 1),
    (PGD(LINF, steps=3, loss="margin", restarts=3), 3),
    (FAB(LINF, steps=2, targets=2), 2),
    (FAB(LINF, steps=2, targets=0), 1),
]


@pytest.mark.parametrize("attack, searches", WATCHED)
@pytest.mark.parametrize("batch_size", [3, 64])
def test_a_search_whose_first_gradient_is_zero_is_counted_once(
    attack: Attack[Any], searches: int, batch_size: int
) -> None:
    inputs = 0.5 + 0.1 * images(7, (1, 2, 2))
    inputs[[1, 4]] = 0.01
    labels = torch.zeros(7, dtype=torch.int64)
    found = run_search(attack, _FlatWhereDark(), inputs, labels, batch_size=batch_size).found
    counts = _counts(found)
    assert (counts.zero_gradients, counts.searches) == (2 * searches, 7 * searches)
    assert counts.nonfinite_gradients == 0


def test_where_cross_entropy_is_flat_the_model_is_merely_confident() -> None:
    sure = LinearModel(torch.tensor([[1e3] * 4, [-1e3] * 4]), torch.zeros(2))
    inputs, labels = 0.5 + 0.1 * images(5, (1, 2, 2)), torch.zeros(5, dtype=torch.int64)
    for attack in (APGD(LINF, steps=3), PGD(LINF, steps=3)):
        found = run_search(attack, sure, inputs, labels).found
        counts = _counts(found)
        assert (counts.zero_gradients, counts.searches) == (0, 5)


@pytest.mark.parametrize("batch_size", [2, 64])
def test_a_search_that_meets_a_gradient_of_infinity_is_counted_once(batch_size: int) -> None:
    inputs, labels = images(5, (1, 2, 2)), torch.zeros(5, dtype=torch.int64)
    attack = APGD(LINF, steps=4, restarts=2, eot=3)
    found = run_search(attack, _Rooted(), inputs, labels, batch_size=batch_size).found
    counts = _counts(found)
    assert (counts.nonfinite_gradients, counts.searches) == (10, 10)
    assert counts.zero_gradients == 0
    assert found.errors == {}
    assert not bool(found.broken.any())


def test_searches_that_a_find_made_needless_are_not_counted() -> None:
    """Whether they ran beside it depends on the batch."""
    model = ExactNetwork()
    inputs = images(16, seed=1)
    labels = predictions(model, inputs)
    counts = []
    for batch_size in (4, 500):
        found = run_search(_targeted(), model, inputs, labels, batch_size=batch_size).found
        expected = torch.where(found.broken, found.search + 1, 4).sum()
        assert _counts(found).searches == int(expected)
        counts.append(_counts(found).searches)
    assert counts[0] == counts[1] < 4 * 16


@pytest.mark.parametrize("failure", [ValueError("no such token"), torch.tensor(float("nan"))])
def test_a_candidate_that_the_original_cannot_judge_is_no_survivor(failure: Any) -> None:
    """The search's own model is sound; the original fails at what it finds."""
    inputs = images(20, seed=8)
    sound = ExactNetwork()
    labels = predictions(sound, inputs)
    attack = APGD(ThreatModel.of("Linf", 0.3), steps=10)
    plain = run_search(attack, sound, inputs, labels).found
    assert bool(plain.broken[4])
    marked = torch.zeros(20, dtype=torch.bool)
    marked[4] = True

    class Judge(nn.Module):
        """Lost wherever sample 4's candidates are; its clean input is nearest to them."""

        def forward(self, points: Tensor) -> Tensor:
            logits: Tensor = sound(points)
            away = (points[:, None] - inputs[None]).flatten(2).abs().amax(dim=2).argmin(dim=1)
            lost = (away == 4) & (points != inputs[4]).flatten(1).any(dim=1)
            if isinstance(failure, Exception):
                if bool(lost.any()):
                    raise failure
                return logits
            return torch.where(lost[:, None], failure, logits)

    found = run_search(attack, Judge(), inputs, labels, search=SearchModel(sound)).found
    assert list(found.errors) == [4]
    assert "original model" in found.errors[4]
    assert not bool(found.broken[4])
    assert torch.equal(found.broken[~marked], plain.broken[~marked])


def test_a_find_ends_later_searches_of_its_sample_beside_it() -> None:
    """Both restarts share the batch; the second never moves and would use up its whole budget."""
    model, inputs, labels, distance, threat_model = linear_problem("Linf", 2, count=12)
    ids = [f"sample-{index}" for index in range(len(labels))]
    second = slot_keys(seeding.sample_keys(0, ids), "pgd", torch.ones_like(labels))

    class SecondStands(PGD):
        def step(self, query: Any, state: PGDState) -> PGDState:
            after = super().step(query, state)
            still = torch.isin(state.keys, second).view(-1, 1, 1, 1)
            return replace(after, point=torch.where(still, state.inputs, after.point))

    attack = SecondStands(
        threat_model, steps=40, relative_step_size=1.0, random_start=False, restarts=2
    )
    attack.can_repeat = False
    found = run_search(attack, model, inputs, labels, batch_size=64).found
    breakable = distance < threat_model.radius
    assert torch.equal(found.broken, breakable)
    assert found.forwards[breakable].unique().tolist() == [4]
    assert found.forwards[~breakable].unique().tolist() == [82]


def _targeted() -> APGD:
    return APGD(ThreatModel.of("Linf", 0.02), loss="dlr-targeted", steps=9, targets=4)


def test_only_the_searches_that_are_wanted_run() -> None:
    model = ExactNetwork()
    inputs = images(50, seed=1)
    labels = predictions(model, inputs)
    whole = run_search(_targeted(), model, inputs, labels).found
    rank = int(whole.search.max())
    assert rank > 0
    # What a search finds does not depend on the searches that ran before it.
    alone = whole.search == rank
    wanted = torch.zeros(50, 4, dtype=torch.bool)
    wanted[alone | (whole.search < 0), rank] = True
    found = run_search(_targeted(), model, inputs, labels, only=wanted).found
    assert torch.equal(found.broken, alone)
    assert set(found.search.tolist()) == {-1, rank}
    assert torch.equal(found.adv_inputs[alone], whole.adv_inputs[alone])
    assert found.forwards[~wanted[:, rank]].unique().tolist() == [0]
    others = [r for r in range(4) if r != rank]
    assert bool(found.search_margins[:, others].isinf().all())


def test_each_search_of_a_survivor_says_how_close_it_came() -> None:
    model = ExactNetwork()
    inputs = images(40, seed=1)
    found = run_search(_targeted(), model, inputs, predictions(model, inputs)).found
    survived = ~found.broken
    assert bool(survived.any())
    margins = found.search_margins[survived]
    assert bool(margins.isfinite().all())
    assert torch.equal(margins.amin(dim=1), found.closest_margin[survived])
