"""A closer look at a record: other maps, layers and classes over its adversarial inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from attack_models import TinyCNN

from robench.api import evaluate
from robench.datasets import ArrayDataset
from robench.errors import ModelError, StoreError, UnknownNameError, UsageError
from robench.inspection.attention_study import chosen_attention, chosen_target, study_attention
from robench.models import wrap_module
from robench.models.wrapper import RobenchModel
from robench.records import Outcome
from robench.results import Store

pytestmark = pytest.mark.usefixtures("unexamined")

CPU = torch.device("cpu")


def tiny(**options: Any) -> RobenchModel:
    return wrap_module(
        TinyCNN(classes=3),
        num_classes=3,
        name="tiny",
        threat_model="Linf-0.05",
        input={"channels": 1},
        **options,
    )


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """A record with its adversarial inputs, of a network that breaks now and then."""
    torch.manual_seed(3)
    model = tiny()
    inputs = torch.rand(60, 1, 6, 6, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        labels = model(inputs).argmax(dim=1)
    labels[:4] = (labels[:4] + 1) % 3
    dataset = ArrayDataset(inputs, labels, num_classes=3)
    store = Store(tmp_path_factory.mktemp("look"))
    (stored, *_) = evaluate(
        model, dataset, "quick", device="cpu", results=store.folder, save_adversarial=True
    )
    assert min(stored.record.count(k) for k in (Outcome.BROKEN, Outcome.SURVIVED)) > 0
    assert stored.record.count(Outcome.CLEAN_ERROR) == 4
    return stored, store.adversarial_rows(stored.record.key)[:], model, dataset


def test_the_cards_own_map_gives_the_records_own_numbers(attacked):
    stored, adversarial, model, dataset = attacked
    study = study_attention(stored, adversarial, model, dataset, device=CPU, samples=6)
    again = study.stored
    assert again.record.attention_method == stored.record.attention_method
    assert again.record.metrics.keys() == stored.record.metrics.keys()
    for name, summary in stored.record.metrics.items():
        assert again.record.metrics[name].model_dump() == pytest.approx(summary.model_dump())
        assert np.allclose(
            again.table[name].astype(float), stored.table[name].astype(float), equal_nan=True
        )
    assert study.panel is not None
    assert len(study.panel) == 6
    wrong = study.panel.adv_predictions != study.panel.labels
    assert wrong.tolist() == [True] * wrong.sum() + [False] * (6 - wrong.sum())
    assert (study.panel.clean_predictions == study.panel.labels).all()


def test_maps_of_the_predicted_class_differ_only_for_the_broken(attacked):
    stored, adversarial, model, dataset = attacked
    look = {"device": CPU, "samples": 0}
    own = study_attention(stored, adversarial, model, dataset, **look).stored
    study = study_attention(stored, adversarial, model, dataset, target="predicted", **look)
    other = study.stored
    assert other.record.attention_method == f"{own.record.attention_method} for the predicted class"
    survived = (stored.table["outcome"] == Outcome.SURVIVED.value).to_numpy()
    name = "attention_divergence"
    assert np.allclose(
        own.table[name][survived].astype(float),
        other.table[name][survived].astype(float),
        equal_nan=True,
    )
    broken = (stored.table["outcome"] == Outcome.BROKEN.value).to_numpy()
    mine, theirs = own.table[name][broken], other.table[name][broken]
    assert not np.allclose(mine.astype(float), theirs.astype(float), equal_nan=True)
    assert study.panel is None


def test_the_class_names_stand_in_the_description(attacked):
    stored, adversarial, model, dataset = attacked
    study = study_attention(stored, adversarial, model, dataset, target=1, device=CPU, samples=0)
    assert study.stored.record.attention_method.endswith(f" for {dataset.class_names[1]}")


def test_what_the_look_refuses(attacked):
    stored, adversarial, model, dataset = attacked
    args = (stored, adversarial, model, dataset)
    for choice, target, error, words in (
        ({"layer": "conv3"}, "true", UnknownNameError, "Did you mean 'conv"),
        ({"method": "feature_sum"}, "predicted", UsageError, "the same for every class"),
        ({"method": "rollout", "layer": "conv1"}, "true", UsageError, "has no layer to choose"),
        ({"method": "rollout"}, "true", ModelError, "attention"),
        ({"layer": "fc"}, "true", ModelError, "did not put out a feature map"),
    ):
        spec = chosen_attention(model, **choice)
        with pytest.raises(error, match=words):
            study_attention(*args, attention=spec, target=target, device=CPU)
    with pytest.raises(UnknownNameError, match="grad_cam"):
        chosen_attention(model, method="grad-cma")
    with pytest.raises(StoreError, match="adversarial inputs for"):
        study_attention(stored, adversarial[:3], model, dataset, device=CPU)
    with pytest.raises(UsageError, match="fingerprints differ"):
        study_attention(stored, adversarial, model, dataset.subset(30), device=CPU)


def test_a_card_without_attention_wants_a_map_named():
    model = tiny(attention={"method": "none"})
    with pytest.raises(UsageError, match="switches attention maps off"):
        chosen_attention(model)
    assert chosen_attention(model, method="feature_sum").method == "feature_sum"


def test_another_map_keeps_the_cards_layer_where_it_has_one():
    model = tiny(attention={"layer": "conv1", "feature_layer": "fc"})
    assert chosen_attention(model, method="feature_sum").layer == "conv1"
    assert chosen_attention(model, method="rollout").layer is None
    assert chosen_attention(model, method="rollout").feature_layer == "fc"


@pytest.mark.parametrize(
    ("text", "found"),
    [("true", "true"), ("predicted", "predicted"), ("dog", 1), ("0", 0), ("2", 0)],
)
def test_targets_are_names_before_they_are_numbers(text, found):
    assert chosen_target(text, ["2", "dog", "cat"]) == found


@pytest.mark.parametrize("text", ["dgo", "3", "-1", ""])
def test_unknown_targets_are_refused(text):
    with pytest.raises(UnknownNameError, match="unknown class"):
        chosen_target(text, ["2", "dog", "cat"])
