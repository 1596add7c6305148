"""Square against the reference: schedule, windows, acceptance, whole trajectories, success."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from typing import Any

import pytest
import torch
from attack_models import (
    DoubleInside,
    PlainQuery,
    Recorder,
    TinyCNN,
    digits_data,
    digits_network,
    images,
    predictions,
    slots_for,
)
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from robench import seeding
from robench.attacks import square
from robench.attacks.base import Slots
from robench.attacks.losses import margin
from robench.attacks.square import Square, SquareState, window_share
from robench.attacks.square_proposals import Moves, Patches, _window
from robench.errors import AttackError
from robench.geometry import norm_of, norm_tolerance
from robench.threat_models import Norm, ThreatModel


@pytest.mark.parametrize(
    ("queries", "rescale"), [(5000, False), (12000, False), (5000, True), (333, True)]
)
def test_the_schedule_is_the_references(queries: int, rescale: bool) -> None:
    reference = SquareAttack(None, n_queries=queries, p_init=0.8, resc_schedule=rescale, eps=1.0)
    for query in range(queries):
        assert window_share(query, 0.8, queries, rescale) == reference.p_selection(query)


@pytest.mark.parametrize("norm", ["L2", "L1"])
@pytest.mark.parametrize("side", [1, 2, 3, 5, 6, 7, 9, 28])
def test_windows_are_the_references(norm: Norm, side: int) -> None:
    reference = SquareAttack(None, norm=norm, eps=1.0, device="cpu")
    theirs = reference.eta(side)
    mine = _window(side, 2 if norm == "L2" else 1)
    same, turned = (torch.allclose(mine.mT if t else mine, theirs) for t in (False, True))
    assert same or turned


def _weak_model() -> tuple[nn.Module, Tensor, Tensor]:
    model = DoubleInside(TinyCNN(classes=5, channels=2, side=6, seed=1))
    inputs = images(6, (2, 6, 6), seed=2)
    return model, inputs, predictions(model, inputs)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_every_proposal_is_allowed(norm: Norm) -> None:
    model, inputs, labels = _weak_model()
    eps = {"Linf": 0.1, "L2": 0.5, "L1": 2.0}[norm]
    attack = Square(ThreatModel.of(norm, eps), queries=60)
    query = PlainQuery(model)
    state = attack.start(query, slots_for(model, inputs, labels))
    best = state.best_margin
    while not bool(attack.finished(state).all()):
        previous, state = state, attack.step(query, state)
        # A point moves only where the margin falls, or where the new point is past the boundary.
        assert bool((state.best_margin <= best.clamp_min(0)).all())
        moved = (state.best != previous.best).flatten(1).any(dim=1)
        improved = (state.best_margin < best) | (state.best_margin <= 0)
        assert bool((improved | ~moved).all())
        assert bool(((state.best >= 0) & (state.best <= 1)).all())
        size = norm_of((state.best - inputs).double(), norm)
        assert bool((size <= eps + norm_tolerance(norm, 72)).all())
        torch.testing.assert_close(margin(model(state.best), labels), state.best_margin)
        best = state.best_margin


@pytest.mark.parametrize(
    ("margin_now", "margin_there", "accepted"),
    [(0.5, 0.4, True), (0.5, 0.5, False), (0.5, 0.6, False), (-0.5, -0.1, True), (0.0, 0.0, True)],
)
def test_the_acceptance_rule_is_the_references(
    margin_now: float, margin_there: float, accepted: bool
) -> None:
    """Smaller is better; past the boundary anything misclassified is taken."""
    inputs = torch.full((1, 1, 2, 2), 0.5)
    there = inputs + 0.1

    class Scripted(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            value = margin_there if torch.equal(points, there) else margin_now
            return torch.tensor([[value, 0.0]])

    attack = Square(ThreatModel.of("Linf", 0.1), queries=5)
    query = PlainQuery(Scripted())
    state = attack.start(query, slots_for(Scripted(), inputs, torch.tensor([0])))
    none = torch.zeros(1, dtype=torch.int64)
    patches = Patches(none, none, torch.zeros(1, 1), none, none)
    ahead = square._Ahead(none, none, patches, none + 1, lookahead=1)
    after = attack._accept_first(query, state, there, ahead)
    assert torch.equal(after.best, there if accepted else state.best)
    assert float(after.best_margin) == pytest.approx(margin_there if accepted else margin_now)


def test_of_queries_asked_at_once_those_after_the_first_accepted_are_forgotten() -> None:
    inputs = torch.full((1, 1, 2, 2), 0.5)

    class Mean(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            lead = points.mean(dim=(1, 2, 3))
            return torch.stack((lead, torch.zeros_like(lead)), dim=1)

    attack = Square(ThreatModel.of("Linf", 0.1), queries=50)
    query = PlainQuery(Mean())
    state = attack.start(query, slots_for(Mean(), inputs, torch.tensor([0])))
    state.best, state.best_margin = inputs, torch.tensor([0.5])
    # Worse, better, better still: the second is the one that a query at a time would take.
    proposals = torch.cat([torch.full_like(inputs, value) for value in (0.6, 0.45, 0.4)])
    places = torch.tensor([3, 5, 9])
    state.tried[:, :7], state.rejected[:] = True, 7
    none = torch.zeros(3, dtype=torch.int64)
    patches = Patches(none, none, torch.zeros(3, 1), none, none)
    ahead = square._Ahead(none, places, patches, torch.tensor([12]), lookahead=8)
    after = attack._accept_first(query, state, proposals, ahead)
    assert torch.equal(after.best, proposals[1:2])
    assert (int(after.step), int(after.asked)) == (6, 3)
    assert not bool(after.tried.any())
    assert int(after.rejected) == 0
    rejected = attack._accept_first(query, after, proposals[:1], ahead.at(torch.tensor([0])))
    assert torch.equal(rejected.best, after.best)
    assert (int(rejected.step), int(rejected.asked)) == (18, 4)


def _replayed(attack: SquareAttack, slot: Slots, threat_model: ThreatModel) -> None:
    """Make the reference draw what we draw for a single sample, in its own order."""
    channels, height, width = slot.inputs.shape[1:]
    power = 2 if threat_model.norm == "L2" else 1
    keys = seeding.derive(slot.keys, seeding.tag("square windows"))

    def turned(drawn: Tensor, side: int) -> Tensor:
        upright = _window(side, power)
        return upright.T if float(drawn) >= 0.5 else upright

    def as_signs(drawn: Tensor) -> Tensor:
        return (drawn >= 0.5).float().mul(2).sub(1).view(1, channels, 1, 1)

    def starts() -> Iterator[Any]:
        if threat_model.norm == "Linf":
            yield seeding.signs(slot.keys, (channels, 1, width))
            return
        side = max(height // 5, 1)
        for i in range(height // side):
            for j in range(width // side):
                key = seeding.derive(slot.keys, i * width + j)
                drawn = seeding.uniform(key, (1 + channels,))[0]
                yield turned(drawn[0], side)
                yield as_signs(drawn[1:])

    def steps() -> Iterator[Any]:
        for step in range(10**6):
            key = seeding.derive(keys, step)
            if threat_model.norm == "Linf":
                drawn = seeding.uniform(key, (2 + channels,))[0]
                yield drawn[0]
                yield drawn[1]
                yield as_signs(drawn[2:])[0]
                continue
            drawn = seeding.uniform(key, (5 + channels,))[0]
            yield from drawn[:4]
            yield lambda side, drawn=drawn: turned(drawn[4], side)
            yield as_signs(drawn[5:])

    draws: Iterator[Any] = (draw for part in (starts(), steps()) for draw in part)

    def random_int(low: int = 0, high: int = 1, shape: Any = (1,)) -> Tensor:
        return (next(draws) * max(high - low, 1)).long().view(1) if high > low else _skip()

    def _skip() -> Tensor:
        next(draws)
        return torch.zeros(1, dtype=torch.int64)

    def eta(side: int) -> Tensor:
        window = next(draws)
        drawn: Tensor = window(side) if callable(window) else window
        return drawn

    attack.random_int = random_int
    attack.random_choice = lambda shape: next(draws)
    attack.eta = eta


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("index", range(2))
def test_with_the_same_draws_the_search_is_the_references(
    norm: Norm, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Query for query, until the sample is broken."""
    monkeypatch.setattr(square, "_LARGEST_MEMORY", 0)
    queries = 250 if norm == "Linf" else 100  # passes the first marks of the schedule
    model, inputs, labels = _weak_model()
    inputs, labels = inputs[index : index + 1], labels[index : index + 1]
    eps = {"Linf": 0.03, "L2": 0.2, "L1": 0.7}[norm]
    threat_model = ThreatModel.of(norm, eps)
    slots = slots_for(model, inputs, labels)

    recorder = Recorder(model)
    reference = SquareAttack(
        recorder, norm=norm, n_queries=queries, eps=eps, device="cpu", resc_schedule=False
    )
    reference.init_hyperparam(inputs)
    _replayed(reference, slots, threat_model)
    reference.attack_single_run(inputs, labels)

    attack = Square(threat_model, queries=queries)
    query = PlainQuery(model)
    state = attack.start(query, slots)
    while not bool(attack.finished(state).all()) and float(state.best_margin) > 0:
        state = attack.step(query, state)
    assert len(query.seen) == len(recorder.seen)
    for step, (mine, theirs) in enumerate(zip(query.seen, recorder.seen, strict=True)):
        difference = float((mine - theirs).abs().max())
        assert difference <= 1e-5, f"query {step}: {difference}"


_QUERIES = 350
"""Of a whole search"""


@cache
def _whole_search(
    threat_model: ThreatModel, constant: str, value: int
) -> tuple[list[Any], PlainQuery]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(square, constant, value)
        return _search_to_the_end(threat_model)


def _search_to_the_end(threat_model: ThreatModel) -> tuple[list[Any], PlainQuery]:
    model = DoubleInside(TinyCNN(classes=5, channels=1, side=6, seed=1))
    inputs = images(7, (1, 6, 6), seed=4)
    labels = predictions(model, inputs)
    attack = Square(threat_model, queries=_QUERIES)
    query = PlainQuery(model)
    state: SquareState = attack.start(query, slots_for(model, inputs, labels))
    path: list[list[tuple[int, float]]] = [[] for _ in labels]
    last = state.best_margin.clone()
    while not bool(attack.finished(state).all()):
        state = attack.step(query, state)
        assert bool((state.asked <= state.step).all())
        assert torch.equal(state.rejected, state.tried.sum(dim=1))
        for slot in (state.best_margin != last).nonzero().flatten().tolist():
            path[slot].append((int(state.step[slot]), float(state.best_margin[slot])))
        last = state.best_margin.clone()
    return [path, state.best, state.step], query


@pytest.mark.parametrize(
    ("norm", "eps", "share"),
    [
        ("Linf", 0.04, 0.7),
        pytest.param("L2", 0.2, 0.9, marks=pytest.mark.slow),
        pytest.param("L1", 0.7, 0.95, marks=pytest.mark.slow),
    ],
)
def test_remembering_rejections_changes_nothing_but_the_cost(
    norm: Norm, eps: float, share: float
) -> None:
    """Every improvement happens at the same query and to the same margin."""
    ball = ThreatModel.of(norm, eps)
    (with_memory, best, steps), query = _whole_search(ball, "_SMALL_PASS", 0)
    (without, plain_best, plain_steps), plain = _whole_search(ball, "_LARGEST_MEMORY", 0)
    assert sum(map(len, plain.seen)) == 7 * (_QUERIES + 1)
    assert sum(map(len, query.seen)) < share * 7 * (_QUERIES + 1)
    assert with_memory == without
    assert torch.equal(best, plain_best)
    assert torch.equal(steps, plain_steps)
    assert sum(map(len, without)) > 20


@pytest.mark.parametrize(
    ("norm", "eps", "haste", "share"),
    # Under L2 and L1 too little is saved in so short a search for a sixteenth of it to matter.
    [
        ("Linf", 0.04, 16, 0.9),
        pytest.param("L2", 0.2, 1, 1, marks=pytest.mark.slow),
        pytest.param("L1", 0.7, 1, 1, marks=pytest.mark.slow),
    ],
)
def test_few_searches_ask_further_ahead(norm: Norm, eps: float, haste: int, share: float) -> None:
    """In fewer passes, of more inputs, on the same path."""
    ball = ThreatModel.of(norm, eps)
    (path, best, _), hasty = _whole_search(ball, "_HASTE", haste)
    (patient_path, patient_best, _), patient = _whole_search(ball, "_SMALL_PASS", 0)
    assert len(hasty.seen) < share * len(patient.seen)
    assert sum(map(len, hasty.seen)) <= 7 * (_QUERIES + 1)
    assert path == patient_path
    assert torch.equal(best, patient_best)


@pytest.mark.parametrize(
    "norm", ["Linf", *(pytest.param(norm, marks=pytest.mark.slow) for norm in ("L2", "L1"))]
)
def test_success_rate_is_the_references(norm: Norm) -> None:
    """On the same inputs, within the noise of two random searches."""
    model = digits_network()
    _, _, inputs, labels = digits_data()
    right = predictions(model, inputs) == labels
    inputs, labels = inputs[right][:250], labels[right][:250]
    eps = {"Linf": 0.16, "L2": 1.0, "L1": 4.5}[norm]
    queries = 40
    reference = SquareAttack(
        model, norm=norm, n_queries=queries, eps=eps, device="cpu", resc_schedule=False
    )
    with torch.random.fork_rng():
        adv_inputs = reference.perturb(inputs, labels)
    theirs = predictions(model, adv_inputs) != labels

    attack = Square(ThreatModel.of(norm, eps), queries=queries)
    query = PlainQuery(model)
    state = attack.start(query, slots_for(model, inputs, labels))
    found = state.margin < 0
    while not bool(attack.finished(state).all()):
        state = attack.step(query, state)
        found |= state.best_margin < 0
    assert 0.1 < float(found.float().mean()) < 0.95
    only_one = int((found & ~theirs).sum()), int((theirs & ~found).sum())
    spread = max(sum(only_one), 1) ** 0.5  # McNemar: the discordant pairs split evenly
    assert abs(only_one[0] - only_one[1]) <= 4 * spread


@pytest.mark.parametrize("kind", [Patches, Moves])
@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 5, 7), (3, 2, 4)])
def test_proposals_of_one_number_are_the_same(
    kind: type[Patches | Moves], shape: tuple[int, int, int]
) -> None:
    """Otherwise an answer from memory would be another proposal's."""
    keys = seeding.sample_keys(0, [str(i) for i in range(3000)])
    size = torch.full_like(keys, min(3, *shape[1:]))
    drawn = kind.draw(keys, size, shape)
    assert 0 <= int(drawn.identity.min()) <= int(drawn.identity.max()) < kind.count(shape)
    own = [getattr(drawn, f.name).float() for f in fields(drawn) if f.name != "identity"]
    content = torch.cat([part.view(len(keys), -1) for part in own], dim=1)
    together = torch.cat([content, drawn.identity[:, None].float()], dim=1)
    different = len(content.unique(dim=0))
    assert len(drawn.identity.unique()) == len(together.unique(dim=0)) == different
    assert different < len(keys)


def test_linf_starts_from_stripes() -> None:
    model, inputs, labels = _weak_model()
    inputs = 0.4 + 0.2 * inputs
    attack = Square(ThreatModel.of("Linf", 0.1), queries=1)
    state = attack.start(PlainQuery(model), slots_for(model, inputs, labels))
    delta = state.best - inputs
    torch.testing.assert_close(delta.abs(), torch.full_like(delta, 0.1), atol=1e-6, rtol=0)
    torch.testing.assert_close(delta, delta[:, :, :1].expand_as(delta), atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_the_other_norms_start_on_the_sphere(norm: Norm) -> None:
    inputs = 0.45 + 0.1 * images(4, (3, 10, 10))
    keys = seeding.sample_keys(0, list("abcd"))
    start = Moves.starting_points(inputs, ThreatModel.of(norm, 0.8), keys)
    size = norm_of(start - inputs, norm)
    torch.testing.assert_close(size, torch.full_like(size, 0.8), atol=1e-4, rtol=0)
    assert not torch.equal(start[0], start[1])


def test_senseless_parameters_are_refused() -> None:
    for name, value, wanted in (
        ("queries", 0, "at least 1"),
        ("initial_share", 0.0, "above 0"),
        ("initial_share", 1.5, "at most 1"),
    ):
        with pytest.raises(AttackError, match=f"{name} must be {wanted}, got {value}"):
            Square(ThreatModel.of("Linf", 0.1), **{name: value})  # type: ignore[arg-type]
