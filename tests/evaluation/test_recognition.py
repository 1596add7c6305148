"""A stored record answers only for the model that gives its outputs again, whatever the key says."""

from __future__ import annotations

import abc
import decimal
import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from digits_means import class_means
from torch import Tensor, nn
from torch.nn import functional as F

import robench
from robench.datasets import Dataset, load_dataset
from robench.errors import ModelError
from robench.evaluation.randomised import HOW_RANDOM
from robench.evaluation.recognition import check_recognised
from robench.evaluation.runner import Listener
from robench.models import load_model, wrap_module
from robench.models.zoo import list_cards
from robench.records import AttackSpec, Suite
from robench.results import Store
from robench.threat_models import ThreatModel
from robench.validity.verified import stored_bounds

SUITE = Suite(name="one", attacks=(AttackSpec(name="pgd", attack="pgd", params={"steps": 1}),))
N = 20


@functools.cache
def data() -> Dataset:
    return load_dataset("digits", n=N)


class Net(nn.Module):
    """The nearest class by mean."""

    def __init__(self) -> None:
        super().__init__()
        means = class_means()
        self.last = nn.Linear(64, 10)
        self.last.weight.data = 2 * means
        self.last.bias.data = -means.square().sum(dim=1)

    def sign(self) -> float:
        return 1.0

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.sign() * self.last(F.relu(inputs).flatten(1))
        return logits


def evaluated(module: nn.Module, results: Path | None, **fields: Any) -> Any:
    (stored,) = robench.evaluate(
        module, data(), SUITE, threat_model="Linf-0.05", results=results, workers=1, **fields
    )
    return stored


class Marker(abc.ABC):  # noqa: B024
    """What a class can be said to be while a program runs."""


class Marked:
    """An object that forward asks for its class."""


@functools.lru_cache
def first_of(_: str) -> list[float]:
    return [1.0]


log = logging.getLogger("of a test")

# Kind → what forward reads, and who changes it: nothing of it is in a key.
HIDDEN: dict[str, tuple[Callable[[nn.Module], float], Callable[[pytest.MonkeyPatch], object]]] = {
    "a class of torch's": (
        lambda self: getattr(nn.Linear, "q", 1.0),
        lambda patch: patch.setattr(nn.Linear, "q", -1.0, raising=False),
    ),
    "decimal's context": (
        lambda self: 1.0 if decimal.getcontext().prec > 9 else -1.0,
        lambda patch: patch.setattr(decimal.getcontext(), "prec", 5),
    ),
    "a logger's level": (
        lambda self: -1.0 if log.isEnabledFor(logging.DEBUG) else 1.0,
        lambda patch: log.setLevel(logging.DEBUG),
    ),
    "a registered class": (
        lambda self: -1.0 if isinstance(Marked(), Marker) else 1.0,
        lambda patch: Marker.register(Marked),
    ),
    "what a cache holds": (
        lambda self: first_of("sign")[0],
        lambda patch: first_of("sign").__setitem__(0, -1.0),
    ),
    "a setting of Python's": (
        lambda self: -1.0 if sys.getswitchinterval() > 1 else 1.0,
        lambda patch: sys.setswitchinterval(2.0),
    ),
    "a setting of torch's": (
        lambda self: -1.0 if torch.are_deterministic_algorithms_enabled() else 1.0,
        lambda patch: torch.use_deterministic_algorithms(True),
    ),
}


@pytest.fixture(autouse=True)
def settings_kept() -> Iterator[None]:
    """What these tests change of the process."""
    interval = sys.getswitchinterval()
    yield
    sys.setswitchinterval(interval)
    torch.use_deterministic_algorithms(False)
    first_of.cache_clear()
    log.setLevel(logging.NOTSET)


@pytest.mark.parametrize("kind", HIDDEN)
def test_what_no_key_holds_shows_in_the_outputs(
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # The doctor looks for other things, and not for this.
    monkeypatch.setattr("robench.evaluation.prepared_model.examine", lambda *_, **__: [])
    reads, change = HIDDEN[kind]
    make = type("Own", (Net,), {"sign": reads})
    before = evaluated(make(), tmp_path)
    assert before.record.counts["clean_error"] < N / 3
    assert not caplog.records
    change(monkeypatch)
    after = evaluated(make(), tmp_path)
    assert "is evaluated again" in caplog.text
    assert after.record.counts["clean_error"] > N / 2
    assert "not_reusable" in {flag.name for flag in after.record.flags}
    kept = Store(tmp_path).read(before.record.key)
    assert kept.record == before.record
    assert len(Store(tmp_path).keys()) == 2


def test_a_function_of_torchs_that_a_layer_calls_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another of torch's own under its name: its code goes by name."""

    class Layers(Net):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Sequential(self.last, nn.ReLU())

    before = evaluated(Layers(), tmp_path)
    monkeypatch.setattr(F, "relu", lambda x, inplace=False: -x.clamp(min=0))
    replaced = evaluated(Layers(), tmp_path)
    assert replaced.record.model.fingerprint != before.record.model.fingerprint
    monkeypatch.setattr(F, "relu", lambda x, inplace=False: torch.cos(50 * x))
    (again, other) = evaluated(Layers(), tmp_path), evaluated(Layers(), None)
    assert again.record.counts == other.record.counts


def test_another_attack_is_not_filed_beside_another_models_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of one fingerprint make one row, so that none of them may be of something else."""
    make = type("Own", (Net,), {"sign": lambda self: getattr(nn.Linear, "q", 1.0)})
    before = evaluated(make(), tmp_path)
    monkeypatch.setattr(nn.Linear, "q", -1.0, raising=False)
    suite = Suite(name="other", attacks=(AttackSpec(name="pgd", attack="pgd"),))
    (after,) = robench.evaluate(
        make(), data(), suite, threat_model="Linf-0.05", results=tmp_path, workers=1
    )
    assert after.record.model.fingerprint != before.record.model.fingerprint


def test_what_changes_adversarial_inputs_alone_is_seen_where_they_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = data().batch(range(N))

    class OffData(Net):
        def forward(self, inputs: Tensor) -> Tensor:
            near = (inputs.flatten(1)[:, None] - clean.flatten(1)).abs().amax(dim=2).amin(dim=1)
            factor = torch.where(near == 0, 1.0, getattr(nn.Linear, "q", 1.0))
            return factor[:, None] * super().forward(inputs)

    before = evaluated(OffData(), tmp_path, save_adversarial=True)
    assert evaluated(OffData(), tmp_path).record == before.record
    monkeypatch.setattr(nn.Linear, "q", -1.0, raising=False)
    after = evaluated(OffData(), tmp_path)
    assert after.record.counts == evaluated(OffData(), None).record.counts
    assert after.record.key != before.record.key


class Rounding(Net):
    """In a half precision inside, as a network with autocast is."""

    kind = torch.bfloat16

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", self.kind):
            return self.last(inputs.flatten(1))


class Drawing(Net):
    """Noise on its inputs."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs + 0.1 * torch.randn_like(inputs))


class Counting(Net):
    """Outputs that drift with each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.passes += 1.0
        return super().forward(inputs) * (1 + 0.01 * self.passes)


class Ties(Net):
    """Two classes are always as likely."""

    def forward(self, inputs: Tensor) -> Tensor:
        logits = super().forward(inputs)
        return torch.cat([logits[:, :1], logits[:, :1], logits[:, 2:]], dim=1)


class Fussy(Net):
    """Fails on some samples."""

    def forward(self, inputs: Tensor) -> Tensor:
        if bool((inputs == data().batch([11])).flatten(1).all(dim=1).any()):
            raise ValueError("not this one")
        return super().forward(inputs)


@pytest.mark.parametrize("make", [Net, Rounding, Drawing, Counting, Ties, Fussy])
def test_honest_models_are_answered_from_the_store(
    make: type[Net], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = evaluated(make(), tmp_path, batch_size=7)
    for fields in ({}, {"batch_size": 3}):
        assert evaluated(make(), tmp_path, **fields).record == before.record
    assert {record.msg for record in caplog.records} <= {HOW_RANDOM}


def test_models_of_the_zoo_give_what_is_stored_of_them() -> None:
    """The repository's own records, which other processes made in other batches."""
    store, samples = Store(Path(__file__).parents[2] / "results"), load_dataset("digits", n=500)
    cards = list_cards("digits")
    assert len(cards) == 8
    for located in cards[::3]:
        model = load_model(located)
        fingerprint = model.summary.fingerprint
        assert store.keys_naming(fingerprint, samples.fingerprint)
        check_recognised(model, samples, store, torch.device("cpu"))
        assert model.summary.fingerprint == fingerprint
    with torch.no_grad():
        next(model.network.parameters()).mul_(1.05)
    check_recognised(model, samples, store, torch.device("cpu"))
    assert model.summary.fingerprint != fingerprint


def test_a_model_that_draws_is_told_from_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = type("Own", (Drawing,), {"sign": lambda self: getattr(nn.Linear, "q", 1.0)})
    before = evaluated(make(), tmp_path)
    monkeypatch.setattr(nn.Linear, "q", -1.0, raising=False)
    assert evaluated(make(), tmp_path).record.key != before.record.key


def test_a_snapshot_goes_on_only_with_the_model_that_left_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make = type("Own", (Net,), {"sign": lambda self: getattr(nn.Linear, "q", 1.0)})
    suite = Suite(name="long", attacks=(AttackSpec(name="pgd", attack="pgd"),))

    class Interrupting(Listener):
        steps = 0

        def advanced(self, steps: int) -> None:
            self.steps += steps
            if self.steps > 2 * N:
                raise KeyboardInterrupt

    def run(results: Path | None, listener: Any = None) -> Any:
        (stored,) = robench.evaluate(
            make(), data(), suite, threat_model="Linf-0.05", results=results, workers=1,
            listener=listener,
        )  # fmt: skip
        return stored.table.drop(columns=["forwards", "backwards"])

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Interrupting())
    assert os.listdir(tmp_path / "progress")
    monkeypatch.setattr(nn.Linear, "q", -1.0, raising=False)
    assert run(tmp_path).equals(run(None))
    assert "begins anew" in caplog.text


def test_bounds_are_of_the_model_that_gives_their_margins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = type("Own", (Net,), {"sign": lambda self: getattr(nn.Linear, "q", 1.0)})
    threat, store = ThreatModel.parse("Linf-0.01"), Store(tmp_path)

    def wrapped() -> Any:
        return wrap_module(make(), num_classes=10, input={"channels": 1})

    model = wrapped()
    stored_bounds(model, data(), threat, "ibp", store, [])
    fingerprint = model.summary.fingerprint
    check_recognised(model, data(), store, torch.device("cpu"))
    assert model.summary.fingerprint == fingerprint
    monkeypatch.setattr(nn.Linear, "q", -1.0, raising=False)
    check_recognised(model, data(), store, torch.device("cpu"))
    assert model.summary.fingerprint != fingerprint


def test_parts_of_two_models_are_not_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = type("Own", (Net,), {"sign": lambda self: getattr(nn.Linear, "q", 1.0)})
    first = evaluated(make(), tmp_path, shard="1/4")
    second = evaluated(make(), tmp_path, shard="2/4")
    assert first.record.model.fingerprint == second.record.model.fingerprint
    assert evaluated(make(), tmp_path, shard="1/4").record == first.record
    monkeypatch.setattr(nn.Linear, "q", -1.0, raising=False)
    with pytest.raises(ModelError, match="another key whenever it is loaded"):
        evaluated(make(), tmp_path, shard="3/4")
