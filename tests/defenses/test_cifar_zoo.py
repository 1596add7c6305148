"""The committed models on CIFAR-10's JPEG copies are what their cards say."""

from __future__ import annotations

import shlex

import pytest
import torch

from robench.cli.options import parse_name_values
from robench.datasets import load_dataset
from robench.defenses import RECIPES, TrainingSettings, validate
from robench.errors import DataError
from robench.models import list_cards, load_model
from robench.models.zoo import LocatedCard, find_card
from robench.request import Request
from robench.request_loading import choose_models

DATASET = "cifar10-jpeg"
MODELS = list_cards(DATASET)
BASELINE = f"{DATASET}/Linf-8_255/resnet10-pgd-at"
CPU = torch.device("cpu")

MEASURED = [located for located in MODELS if located.card.provenance.measured]
"""A new model is committed before its evaluation has run."""

each = pytest.mark.parametrize("located", MODELS, ids=lambda located: located.card.name)
each_measured = pytest.mark.parametrize("located", MEASURED, ids=lambda located: located.card.name)


def test_the_zoo_is_there_and_small() -> None:
    defenses = {located.card.defense for located in MODELS}
    assert defenses >= {"standard", "pgd-at", "trades", "aerp", "agkd-bml", "ancra"}
    total = sum((located.folder / "weights.safetensors").stat().st_size for located in MODELS)
    assert total < 40e6


def test_all_have_one_architecture_but_for_reverse_attention() -> None:
    for located in MODELS:
        ancra = located.card.defense == "ancra"
        assert located.card.architecture.name == ("resnet18_ra" if ancra else "resnet18")
        assert located.card.architecture.arguments == {"width": 16, "stages": [1, 1, 1, 1]}
    assert len({load_model(located).summary.parameters for located in MODELS}) == 1


def test_unless_asked_for_they_are_not_run() -> None:
    for models in ((), ("pgd-at",)):
        chosen, dataset = choose_models(Request(models))
        assert dataset == "digits"
        assert {model.card.dataset for model in chosen if isinstance(model, LocatedCard)} == {
            "digits"
        }


@each
def test_provenance(located: LocatedCard) -> None:
    origin = located.card.provenance
    assert str(located.card.threat_model) == "Linf-8/255"
    assert origin.training_data is not None
    parts = [part.strip().split(",")[0] for part in origin.training_data.split(";")]
    assert parts == [f"{DATASET} train", f"{DATASET} validation"]
    if "teacher" in origin.recipe:
        teacher = find_card(origin.recipe["teacher"]).card
        assert teacher.defense == "standard"
        assert origin.recipe["teacher_sha256"] == teacher.weights.sha256


@each
def test_the_command_gives_the_recorded_settings_on_any_machine(located: LocatedCard) -> None:
    card = located.card
    assert card.provenance.command is not None
    words = shlex.split(card.provenance.command)
    assert words[:5] == ["robench", "train", card.defense, "--dataset", DATASET]
    assert "--data-root" not in words
    assert "--out" not in words
    given = dict(zip(words[3::2], words[4::2], strict=True))
    assert given["--name"] == card.name
    assert given["--seed"] == str(card.provenance.seed)
    flags = list(zip(words[3::2], words[4::2], strict=True))
    overrides = parse_name_values([value for flag, value in flags if flag == "--set"], "--set")
    overrides["epochs"] = int(given["--epochs"])
    kind = RECIPES[card.defense]
    own = {k: v for k, v in overrides.items() if k in kind.model_fields}
    common = {k: v for k, v in overrides.items() if k not in kind.model_fields}
    settings = TrainingSettings.model_validate(common).model_dump(mode="json")
    expected = {**settings, **kind.model_validate(own).model_dump(mode="json")}
    assert {k: card.provenance.recipe[k] for k in expected} == expected
    arguments = parse_name_values([value for flag, value in flags if flag == "--arch-arg"], "")
    assert (given["--arch"], arguments) == (card.architecture.name, card.architecture.arguments)


@each_measured
def test_measured_figures_say_on_what_and_agree_with_each_other(located: LocatedCard) -> None:
    card, measured = located.card, located.card.provenance.measured
    assert measured["data"] == f"{DATASET} test"
    assert str(measured["command"]).startswith(f"robench run {card.id} --suite standard")
    assert measured["n"] >= 200
    assert measured["clean_acc"] >= measured["pgd_20_acc"] >= measured["robust_acc"]
    assert measured["autoattack_acc"] >= measured["robust_acc"]
    if card.forward.outputs:
        assert measured["auxiliary_acc"] >= measured["robust_acc"]
    if card.id != BASELINE:
        baseline = find_card(BASELINE).card.provenance.measured["autoattack_acc"]
        gain = measured["autoattack_acc"] - baseline
        assert measured["autoattack_gain"] == pytest.approx(gain, abs=0.06)
        assert measured["autoattack_gain_low"] <= gain <= measured["autoattack_gain_high"]
        assert f"{measured['autoattack_gain']:+.1f} points" in str(measured["against_baseline"])


def test_ancra_s_card_says_that_it_is_suspect() -> None:
    (card,) = (located.card for located in MODELS if located.card.defense == "ancra")
    assert "Suspect" in str(card.provenance.notes)
    assert "auxiliary_0" in card.forward.outputs


@each_measured
def test_accuracy_where_the_images_are_at_hand(located: LocatedCard) -> None:
    measured = located.card.provenance.measured
    try:
        data = load_dataset(DATASET, n=int(measured["n"]))
    except DataError:
        pytest.skip(f"{DATASET} is not on this machine")
    model = load_model(located)
    figures = validate(model, data, located.card.threat_model, seed=0, steps=20, device=CPU)
    # The very samples of the card; another PGD-20 starts elsewhere.
    assert figures["clean_acc"] == pytest.approx(measured["clean_acc"], abs=0.6)
    assert figures["robust_acc"] == pytest.approx(measured["pgd_20_acc"], abs=3)
