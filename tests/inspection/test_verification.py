"""Judging a record's adversarial inputs again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robench.attacks.suites import load_suite
from robench.datasets import load_dataset
from robench.errors import StoreError, UsageError
from robench.evaluation.prepared_model import Settings
from robench.evaluation.runner import evaluate_model
from robench.inspection.verification import reverify
from robench.models import load_model
from robench.records import Outcome
from robench.results import Store

pytestmark = pytest.mark.usefixtures("unexamined")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A PGD-20 record with its adversarial inputs, the model and the samples."""
    store = Store(tmp_path_factory.mktemp("store"))
    model = load_model("digits/Linf-0.2/pgd-at")
    dataset = load_dataset("digits", n=40)
    records = evaluate_model(
        model,
        dataset,
        load_suite("quick"),
        store=store,
        settings=Settings(save_adversarial=True),
    )
    stored = next(s for s in records if s.record.attack.name == "pgd-20")
    return stored, store.adversarial_rows(stored.record.key)[:], model, dataset


def test_an_honest_record_holds(evaluated):
    stored, adversarial, model, dataset = evaluated
    judged, differing = reverify(stored, adversarial, model, dataset, device=CPU, batch_size=7)
    assert differing == {}
    assert judged == stored.record.n - stored.record.count(Outcome.CLEAN_ERROR)


def test_clean_inputs_break_nothing(evaluated):
    stored, _, model, dataset = evaluated
    clean = dataset.batch(range(len(dataset))).numpy()
    _, differing = reverify(stored, clean, model, dataset, device=CPU)
    broken = {s.sample_id for s in stored.samples if s.outcome is Outcome.BROKEN}
    assert broken
    assert set(differing) == broken
    assert all("now classified correctly" in text for text in differing.values())


def test_a_broken_input_in_a_survivors_place_is_seen(evaluated):
    stored, adversarial, model, dataset = evaluated
    rows = [i for i, s in enumerate(stored.samples) if s.outcome is Outcome.SURVIVED][:1]
    forged = adversarial.copy()
    forged[rows] += 0.3
    _, differing = reverify(stored, forged, model, dataset, device=CPU)
    assert list(differing) == [stored.samples[rows[0]].sample_id]
    assert "outside" in differing[stored.samples[rows[0]].sample_id]


def test_a_broken_sample_called_survivor_is_seen(evaluated):
    stored, adversarial, model, dataset = evaluated
    samples = list(stored.samples)
    row = next(i for i, s in enumerate(samples) if s.outcome is Outcome.BROKEN)
    samples[row] = samples[row].model_copy(update={"outcome": Outcome.SURVIVED})
    counts = dict(stored.record.counts)
    counts[Outcome.BROKEN] -= 1
    counts[Outcome.SURVIVED] += 1
    forged = type(stored).of(stored.record.model_copy(update={"counts": counts}), samples)
    _, differing = reverify(forged, adversarial, model, dataset, device=CPU)
    assert differing == {samples[row].sample_id: "recorded as survived, now misclassified"}


def test_another_model_other_data_or_too_few_inputs_are_refused(evaluated):
    stored, adversarial, model, dataset = evaluated
    with pytest.raises(UsageError, match="not the one that was evaluated"):
        reverify(stored, adversarial, load_model("digits/Linf-0.2/standard"), dataset, device=CPU)
    with pytest.raises(UsageError, match="fingerprints differ"):
        reverify(stored, adversarial, model, dataset.subset(39), device=CPU)
    with pytest.raises(StoreError, match="39 adversarial inputs for 40 samples"):
        reverify(stored, np.delete(adversarial, 0, axis=0), model, dataset, device=CPU)
