"""The committed digits models are what their cards say."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch

from robench.datasets import load_dataset, load_training_splits
from robench.defenses import RECIPES, resolve, train, validate
from robench.models import list_cards, load_model, read_card
from robench.models.zoo import LocatedCard

MODELS = [card for card in list_cards("digits") if card.id.startswith("digits/Linf-0.2/")]
CPU = torch.device("cpu")

# Percent on the first 100 test samples: least clean accuracy, least and most under PGD-20.
EXPECTED = {
    "standard": (96, 0, 3),
    "pgd-at": (96, 76, 95),
    "trades": (93, 68, 95),
}


def test_the_zoo_is_there() -> None:
    assert {located.card.name for located in MODELS} >= set(EXPECTED)


@pytest.mark.parametrize("located", MODELS, ids=lambda located: located.card.name)
def test_provenance(located: LocatedCard) -> None:
    card = located.card
    origin = card.provenance
    train_data, validation = load_training_splits("digits")
    assert origin.training_data is not None
    assert train_data.fingerprint in origin.training_data
    assert validation.fingerprint in origin.training_data
    assert load_dataset("digits").fingerprint not in origin.training_data
    assert origin.command is not None
    assert shlex.split(origin.command)[:3] == ["robench", "train", card.defense]
    assert card.defense in RECIPES
    assert {"clean_acc", "robust_acc", "epoch"} <= set(origin.validation)
    assert (located.folder / "weights.safetensors").stat().st_size < 300_000
    assert 15_000 < load_model(located).summary.parameters < 60_000


@pytest.mark.parametrize("located", MODELS, ids=lambda located: located.card.name)
def test_each_card_says_what_it_gains_or_loses_under_autoattack(located: LocatedCard) -> None:
    cards = {other.card.name: other.card for other in MODELS}
    measured = located.card.provenance.measured
    baseline = cards["pgd-at"].provenance.measured["autoattack_acc"]
    assert measured["n"] == 500
    if located.card.name == "pgd-at":
        assert "autoattack_gain" not in measured
        return
    gain = measured["autoattack_acc"] - baseline
    assert measured["autoattack_gain"] == pytest.approx(gain, abs=0.06)
    low, high = measured["autoattack_gain_low"], measured["autoattack_gain_high"]
    assert low <= gain <= high
    sentence = str(measured["against_baseline"])
    assert f"{measured['autoattack_gain']:+.1f} points" in sentence
    # Only what the interval leaves no doubt of is called a gain or a loss.
    expected = "gains" if low > 0 else "loses" if high < 0 else "does not tell"
    assert expected in sentence


def test_ancra_s_card_says_that_it_is_suspect() -> None:
    (card,) = (located.card for located in MODELS if located.card.name == "ancra")
    assert "Suspect" in str(card.provenance.notes)
    measured = card.provenance.measured
    assert measured["auxiliary_acc"] < measured["autoattack_acc"]


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_accuracy(name: str) -> None:
    (located,) = (located for located in MODELS if located.card.name == name)
    clean, low, high = EXPECTED[name]
    figures = validate(
        load_model(located),
        load_dataset("digits", n=100),
        located.card.threat_model,
        seed=0,
        steps=20,
        device=CPU,
    )
    assert figures["clean_acc"] >= clean
    assert low <= figures["robust_acc"] <= high


@pytest.mark.slow
@pytest.mark.parametrize("located", MODELS, ids=lambda located: located.card.name)
def test_the_recorded_settings_train_as_good_a_model_again(
    located: LocatedCard, tmp_path: Path
) -> None:
    """Other processors round differently, so the figures are compared and not the bits."""
    card = located.card
    skipped = ("device", "devices", "teacher", "teacher_sha256")
    recorded = {k: v for k, v in card.provenance.recipe.items() if k not in skipped}
    job = resolve(
        card.defense,
        "digits",
        architecture=card.architecture,
        threat_model=card.threat_model,
        teacher=card.provenance.recipe.get("teacher"),
        name=card.name,
        seed=card.provenance.seed or 0,
        folder=tmp_path,
        device="cpu",
        settings=recorded,
    )
    path = train(job, progress=False)
    again = read_card(path)
    assert again.architecture == card.architecture
    for key, slack in (("clean_acc", 3), ("robust_acc", 8)):
        assert again.provenance.validation[key] == pytest.approx(
            card.provenance.validation[key], abs=slack
        )
