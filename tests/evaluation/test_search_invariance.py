"""The same verdicts and the same adversarial inputs, whatever the batch, order or interruption.

The network's arithmetic is exact, so every comparison is bit for bit. An ordinary network in
float32 is compared as well: there the verdicts must agree and the points to 1e-5.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from attack_models import (
    ExactNetwork,
    TinyCNN,
    Watching,
    images,
    predictions,
    run_search,
)
from torch import Tensor, nn

from robench.attacks.apgd import APGD
from robench.attacks.base import Attack
from robench.attacks.carlini_wagner import CarliniWagnerL2
from robench.attacks.ddn import DDN
from robench.attacks.fab import FAB
from robench.attacks.fmn import FMN
from robench.attacks.grid_pgd import GridPGD
from robench.attacks.hop_skip_jump import HopSkipJump
from robench.attacks.pgd import PGD
from robench.attacks.probability_margin import PMA
from robench.attacks.square import Square
from robench.evaluation.samples import SearchResult
from robench.threat_models import ThreatModel

N = 20
LINF, L2, L1 = (ThreatModel.of(*t) for t in (("Linf", 0.02), ("L2", 0.12), ("L1", 0.5)))

ATTACKS: dict[str, Callable[[], Attack[Any]]] = {
    "fgsm": lambda: PGD(LINF, steps=1, relative_step_size=1.0, random_start=False),
    "pgd": lambda: PGD(LINF, steps=8, restarts=2),
    "pgd-short": lambda: PGD(LINF, steps=1, relative_step_size=0.3, restarts=5),
    "pgd-l2": lambda: PGD(L2, steps=8, restarts=2, loss="margin"),
    "grid-pgd": lambda: GridPGD(LINF, steps=8, restarts=2),
    "pma": lambda: PMA(LINF, steps=6, restarts=2),
    "pma-l2": lambda: PMA(L2, steps=5),
    "apgd-ce": lambda: APGD(LINF, steps=12, restarts=2),
    "apgd-dlr-l2": lambda: APGD(L2, steps=12, loss="dlr"),
    "apgd-t": lambda: APGD(LINF, steps=9, loss="dlr-targeted", targets=4),
    "apgd-t-malt": lambda: APGD(LINF, steps=9, loss="dlr-targeted", targets=3, target_order="malt"),
    "fab-t-malt": lambda: FAB(L2, steps=2, targets=3, restarts=2, target_order="malt"),
    "apgd-t-l1": lambda: APGD(L1, steps=12, loss="dlr-targeted", targets=3, shrinking_eps=True),
    "fab": lambda: FAB(LINF, steps=4, targets=0, restarts=2),
    "fab-t-short": lambda: FAB(LINF, steps=1, targets=5),
    "fab-t": lambda: FAB(L2, steps=4, targets=4),
    "fab-t-l1": lambda: FAB(L1, steps=4, targets=3),
    "square": lambda: Square(LINF, queries=40),
    "square-l2": lambda: Square(L2, queries=12),
    "square-l1": lambda: Square(L1, queries=12),
    "hop-skip-jump": lambda: HopSkipJump(LINF, steps=2, draws=6),
    "hop-skip-jump-l2": lambda: HopSkipJump(L2, steps=2, draws=4, restarts=2),
    "fmn": lambda: FMN(LINF, steps=12),
    "fmn-l2": lambda: FMN(L2, steps=12),
    "fmn-l1": lambda: FMN(L1, steps=12),
    "ddn": lambda: DDN(L2, steps=20, initial_norm=0.2),
    "cw-l2": lambda: CarliniWagnerL2(L2, rounds=3, steps=8),
}

LIKE_ANOTHER = {
    *("pgd-short", "pgd-l2", "pma-l2", "apgd-t-malt", "fab-t-malt", "fab-t-short", "fab-t-l1"),
    *("square-l1", "hop-skip-jump-l2", "fmn-l2", "fmn-l1"),
}
"""Their states have the same parts as another one's of the attack"""


def _problem() -> tuple[nn.Module, Tensor, Tensor]:
    model = ExactNetwork()
    inputs = images(N, seed=3)
    return model, inputs, predictions(model, inputs)


def _assert_same(one: SearchResult, other: SearchResult, order: Tensor | None = None) -> None:
    order = torch.arange(len(one.broken)) if order is None else order
    verdict = ("broken", "prediction", "margin", "size")
    for name in (*verdict, "search", "adv_inputs", "closest_margin", "found_size"):
        mine, theirs = getattr(one, name)[order], getattr(other, name)
        assert torch.equal(mine.nan_to_num(-7.0), theirs.nan_to_num(-7.0)), name


@pytest.mark.parametrize("name", ATTACKS)
def test_batch_order_and_shards_change_nothing(name: str) -> None:
    model, inputs, labels = _problem()
    whole = run_search(ATTACKS[name](), model, inputs, labels, batch_size=500).found
    assert bool(whole.broken.any())
    assert not bool(whole.broken.all())
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    for shard, batch_size in zip(order.split(N - 1), (11, 1), strict=True):
        run = run_search(ATTACKS[name](), model, inputs, labels, order=shard, batch_size=batch_size)
        _assert_same(whole, run.found, shard)


def test_several_ranks_break_samples() -> None:
    """Otherwise the tests of this file would say little about concurrent searches."""
    model, inputs, labels = _problem()
    for name, least in (("pgd-short", 2), ("apgd-t", 2), ("fab-t-short", 3)):
        found = run_search(ATTACKS[name](), model, inputs, labels).found
        assert len(set(found.search[found.broken].tolist())) >= least


def test_seeds_change_the_draws() -> None:
    model, inputs, labels = _problem()
    one, two = (
        run_search(ATTACKS["pgd"](), model, inputs, labels, seed=seed).found for seed in (0, 1)
    )
    assert not torch.equal(one.adv_inputs, two.adv_inputs)
    same = run_search(ATTACKS["pgd"](), model, inputs, labels, seed=0).found
    assert torch.equal(one.adv_inputs, same.adv_inputs)


def _through_a_file(snapshot: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(snapshot, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


class _InterruptedError(Exception):
    """The interruption."""


@pytest.mark.parametrize(
    "places",
    [
        pytest.param(((0.33, 6), (1, 11)), id="some"),
        pytest.param(((0, 11), (0.5, 11), (0.75, 6)), id="more", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in LIKE_ANOTHER else ())
        for name in ATTACKS
    ],
)
def test_a_resumed_run_ends_as_an_uninterrupted_one(
    name: str, places: Sequence[tuple[float, int]]
) -> None:
    """With snapshots from so far into the run, 0 to 1, and batches of so many."""
    model, inputs, labels = _problem()
    steps = {"told": 0}

    def count(done: int) -> None:
        steps["told"] += done

    kept: list[dict[str, Any]] = []
    run = run_search(
        ATTACKS[name](),
        model,
        inputs,
        labels,
        batch_size=11,
        progress=count,
        save=lambda make: kept.append(make()),
    )
    whole = run.found
    total = run.total_steps
    assert steps["told"] == total

    last = len(kept) - 1
    for share, batch_size in places:
        snapshot = _through_a_file(kept[int(share * last)])
        steps["told"] = 0
        found = run_search(
            ATTACKS[name](),
            model,
            inputs,
            labels,
            batch_size=batch_size,
            snapshot=snapshot,
            progress=count,
        ).found
        _assert_same(whole, found)
        assert steps["told"] == total
        if batch_size == 11:
            assert torch.equal(found.forwards, whole.forwards)
            assert torch.equal(found.backwards, whole.backwards)


def test_stopping_by_an_exception_keeps_the_last_snapshot() -> None:
    model, inputs, labels = _problem()
    whole = run_search(ATTACKS["apgd-t"](), model, inputs, labels, batch_size=11).found
    kept: dict[str, Any] = {}

    def save(make: Callable[[], dict[str, Any]]) -> None:
        kept["calls"] = kept.get("calls", 0) + 1
        kept["last"] = make()
        if kept["calls"] == 11:
            raise _InterruptedError

    with pytest.raises(_InterruptedError):
        run_search(ATTACKS["apgd-t"](), model, inputs, labels, batch_size=11, save=save)
    found = run_search(
        ATTACKS["apgd-t"](), model, inputs, labels, batch_size=11, snapshot=kept["last"]
    ).found
    _assert_same(whole, found)


def test_a_model_that_refuses_empty_batches_resumes_too() -> None:
    model, inputs, labels = _problem()

    def refuse(batch: Tensor) -> None:
        if len(batch) == 0:
            raise ValueError("cannot reshape an empty batch")

    picky = Watching(model, refuse)
    kept: list[dict[str, Any]] = []
    whole = run_search(
        ATTACKS["apgd-ce"](),
        picky,
        inputs,
        labels,
        save=lambda make: kept.append(make()),
    ).found
    found = run_search(ATTACKS["apgd-ce"](), picky, inputs, labels, snapshot=kept[3]).found
    _assert_same(whole, found)
    assert not found.errors


@pytest.mark.parametrize("name", ["pgd", "apgd-t", "fab-t", "square"])
def test_an_ordinary_network_in_float32_gives_the_same_verdicts(name: str) -> None:
    """Verdicts agree and adversarial inputs agree to 1e-5 where the network's kernels differ
    with the batch in the last bits only."""
    model = TinyCNN(seed=4)
    inputs = images(16, seed=6)
    labels = predictions(model, inputs)
    one, two = (
        run_search(ATTACKS[name](), model, inputs, labels, batch_size=size).found
        for size in (16, 7)
    )
    assert torch.equal(one.broken, two.broken)
    close = (one.adv_inputs - two.adv_inputs).flatten(1).abs().amax(dim=1) <= 1e-5
    # A sign of a gradient near zero may turn; it must stay the exception.
    assert float(close.float().mean()) >= 0.9


def test_no_samples_give_no_verdicts() -> None:
    model, inputs, labels = _problem()
    none = torch.zeros(0, dtype=torch.int64)
    found = run_search(ATTACKS["pgd"](), model, inputs, labels, order=none).found
    assert len(found.broken) == 0
