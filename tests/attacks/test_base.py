"""Slots, states, and the passes they share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attack_models import ExactNetwork, PlainQuery, images, predictions, slots_for
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robench.attacks.apgd import APGD
from robench.attacks.base import Attack, State, evaluate, join, nth_best_rival, slot_keys, take
from robench.attacks.carlini_wagner import CarliniWagnerL2
from robench.attacks.fab import FAB
from robench.attacks.losses import LOSSES, Loss
from robench.attacks.pgd import PGD, fingerprint
from robench.attacks.square import Square
from robench.errors import AttackError
from robench.threat_models import ThreatModel

LINF = ThreatModel.of("Linf", 0.05)


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"steps": 1.5}, "steps must be a whole number, got 1.5"),
        ({"steps": True}, "steps must be a whole number, got True"),
        ({"steps": 10**20}, "steps must be a whole number"),
        ({"random_start": "no"}, "random_start must be true or false, got 'no'"),
        ({"random_start": 0}, "random_start must be true or false, got 0"),
        ({"step_size": float("nan")}, "step_size must be a finite number or left out, got nan"),
        ({"relative_step_size": float("inf")}, "relative_step_size must be a finite number"),
        ({"loss": ["ce"]}, "loss must be text"),
    ],
)
def test_a_parameter_of_another_type_is_refused(parameters: dict[str, Any], says: str) -> None:
    """A text is true, and a step of NaN finds nothing: every sample would be called robust."""
    with pytest.raises(AttackError, match=says):
        PGD(LINF, **parameters)
    assert PGD(LINF, step_size=1, random_start=False).length == 1


def _state(count: int = 6) -> tuple[PlainQuery, State]:
    model, inputs = ExactNetwork(), images(count)
    query = PlainQuery(model)
    attack = APGD(LINF, steps=4)
    return query, attack.start(query, slots_for(model, inputs, predictions(model, inputs)))


def _tensors(state: State) -> dict[str, Tensor]:
    return {name: value for name, value in vars(state).items() if isinstance(value, Tensor)}


ATTACKS: list[Attack[Any]] = [
    PGD(LINF, steps=4),
    APGD(LINF, steps=6, loss="dlr-targeted", targets=3),
    APGD(ThreatModel.of("L1", 0.5), steps=6, shrinking_eps=True),
    FAB(LINF, steps=4, targets=2),
    FAB(LINF, steps=4, targets=0),
    Square(LINF, queries=30),
    Square(ThreatModel.of("L2", 0.2), queries=30),
    CarliniWagnerL2(ThreatModel.of("L2", 0.2), rounds=2, steps=3),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: f"{a.name}-{a.threat_model.norm}")
def test_a_step_leaves_the_state_that_it_was_given_as_it_was(attack: Attack[Any]) -> None:
    """An interrupted step is made again, from a state that others still refer to."""
    model, inputs = ExactNetwork(), images(6)
    query = PlainQuery(model)
    state = attack.start(query, slots_for(model, inputs, predictions(model, inputs)))
    assert type(state) is attack.state_type
    for _ in range(6):
        before = {name: value.clone() for name, value in _tensors(state).items()}
        after = attack.step(query, state)
        for name, value in before.items():
            assert torch.equal(getattr(state, name), value), name
        state = after


def test_taking_and_joining_restore_a_state() -> None:
    _, state = _state()
    rows = torch.tensor([4, 0, 5, 1, 3, 2])
    parts = [take(state, part) for part in rows.split(4)]
    restored = take(join(parts), rows.argsort())
    for name, value in _tensors(state).items():
        assert torch.equal(getattr(restored, name), value), name


def test_slots_may_be_taken_by_mask() -> None:
    _, state = _state()
    mask = torch.tensor([True, False, True, False, False, True])
    by_mask, by_rows = take(state, mask), take(state, torch.tensor([0, 2, 5]))
    for name, value in _tensors(by_rows).items():
        assert torch.equal(getattr(by_mask, name), value), name
    assert len(take(state, torch.zeros(6, dtype=torch.bool)).labels) == 0


@pytest.mark.parametrize("label", [0, 1, 2])
def test_targets_are_the_wrong_classes_from_the_likeliest_on(label: int) -> None:
    # Whichever class is on top: a further output may well prefer another one than the label.
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    aimed = [
        int(nth_best_rival(logits, torch.tensor([label]), torch.tensor([n]))) for n in range(2)
    ]
    assert aimed == [rival for rival in (1, 2, 0) if rival != label]


@pytest.mark.parametrize("needed", ["all", "none", "some"])
def test_gradients_are_asked_for_only_where_they_are_used(needed: str) -> None:
    model, points = ExactNetwork(), images(8)
    labels = predictions(model, points)
    loss = Loss(LOSSES["ce"], labels, labels)
    mask = {"all": [True] * 8, "none": [False] * 8, "some": [True, False] * 4}[needed]
    query = PlainQuery(model)
    full = PlainQuery(model).gradient(points, loss)
    seen = evaluate(query, points, loss, torch.tensor(mask))
    assert torch.equal(seen.logits, full.logits)
    assert torch.equal(seen.losses, full.losses)
    wanted = torch.where(torch.tensor(mask)[:, None, None, None], full.gradient, 0.0)
    assert torch.equal(seen.gradient, wanted)
    assert [len(batch) for batch in query.seen] == ([4, 4] if needed == "some" else [8])


def test_keys_differ_by_attack_sample_and_rank() -> None:
    keys = torch.arange(5)
    seen = {
        int(key)
        for attack in ("pgd", "apgd")
        for search in range(4)
        for key in slot_keys(keys, attack, torch.full((5,), search))
    }
    assert len(seen) == 2 * 4 * 5


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31), st.integers(1, 3))
def test_fingerprints_tell_points_apart_by_their_bits(seed: int, bits: int) -> None:
    point = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(fingerprint(point), fingerprint(point.clone()))
    nudged = point.clone()
    for position in range(bits):
        nudged.view(-1)[seed % 48 - position] *= 1 + 2.0**-22
    swapped = point.clone().view(-1)
    swapped[[0, 1]] = swapped[[1, 0]]
    codes = torch.cat([fingerprint(p.view(1, 3, 4, 4)) for p in (point, nudged, swapped)])
    distinct = {tuple(p.flatten().tolist()) for p in (point, nudged, swapped)}
    assert len(set(codes.tolist())) == len(distinct)
    assert bool((codes != 0).all())


def test_fingerprints_do_not_collide_on_a_lattice() -> None:
    """Sign steps move every pixel by the same amount: the points differ in few bit patterns."""
    clean = torch.full((1, 1, 4, 4), 0.5)
    signs = (torch.arange(1 << 14)[:, None] >> torch.arange(16)) & 1
    points = clean + 0.05 * (2.0 * signs - 1).view(-1, 1, 4, 4)
    assert len(set(fingerprint(points).tolist())) == 1 << 14


def test_pgds_first_point_is_the_clean_input_unless_it_starts_at_random() -> None:
    model, inputs = ExactNetwork(), images(6)
    slots = slots_for(model, inputs, predictions(model, inputs))
    query = PlainQuery(model)
    assert torch.equal(PGD(LINF, random_start=False).start(query, slots).point, inputs)
    started = PGD(LINF).start(query, slots).point
    assert not torch.equal(started, inputs)
    assert query.seen == []


def test_the_step_size_is_a_share_of_eps_or_absolute() -> None:
    assert PGD(LINF).length == pytest.approx(0.0125)
    assert PGD(LINF, step_size=0.01).length == 0.01
    model, inputs = ExactNetwork(), 0.4 + 0.2 * images(6)
    attack = PGD(LINF, step_size=0.01, random_start=False)
    query = PlainQuery(model)
    state = attack.start(query, slots_for(model, inputs, predictions(model, inputs)))
    moved = attack.step(query, state).point - inputs
    torch.testing.assert_close(moved.abs().amax(), torch.tensor(0.01), atol=1e-6, rtol=0)
