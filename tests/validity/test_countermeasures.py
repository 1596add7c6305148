"""What is due for a model, from what its diagnoses ask for."""

from __future__ import annotations

import pytest

from robench.models import load_model
from robench.records import Diagnosis
from robench.stand_ins.catalogue import STAND_INS
from robench.threat_models import ThreatModel
from robench.validity.countermeasures import CASCADE, cascade, choose, countermeasures

THREAT = ThreatModel.parse("Linf-0.2")


def masked(*asks: str) -> Diagnosis:
    return Diagnosis(test="mine", outcome="masked", evidence="odd", asks_for=asks)


def test_a_sound_model_meets_the_cheap_ones_alone() -> None:
    sound = Diagnosis(test="mine", outcome="sound", evidence="fine", asks_for=("eot",))
    chosen = choose([sound], load_model("digits/Linf-0.2/pgd-at"), THREAT)
    assert [(item.name, item.asked_by) for item in chosen] == [("scale-free", ())]
    spec = cascade(chosen)
    assert spec is not None
    assert (spec.name, spec.escalation, len(spec.stages)) == (CASCADE, True, 2)


def test_what_is_asked_for_comes_in_order_of_cost_and_what_nobody_knows_is_named() -> None:
    asked = [masked("square-more", "eot"), masked("my-attack")]
    chosen = choose(asked, load_model("digits/Linf-0.2/pgd-at"), THREAT)
    assert [item.name for item in chosen] == ["scale-free", "eot", "square-more", "my-attack"]
    assert chosen[-1].problem == "robench has no such countermeasure"
    assert not chosen[-1].stages


def test_transfer_goes_through_the_other_models_of_the_zoo() -> None:
    chosen = choose([masked("transfer")], load_model("digits/Linf-0.2/pgd-at"), THREAT)
    through = {stage.through for item in chosen for stage in item.stages} - {None}
    assert through == {"model:digits/Linf-0.2/standard", "model:digits/Linf-0.2/vit-pgd-at"}


def test_further_outputs_and_other_ways_through_are_attacked() -> None:
    chosen = {item.name: item for item in choose([], load_model("digits/Linf-0.2/ancra"), THREAT)}
    stages = {stage.name: stage.through for stage in chosen["auxiliary"].stages}
    assert {"auxiliary", "auxiliary:soft", "auxiliary:own"} <= set(stages.values())
    assert None in stages.values()  # each output alone


@pytest.mark.parametrize("norm", ["Linf-0.2", "L2-0.5", "L1-5"])
def test_every_countermeasure_of_the_catalogue_is_an_attack(norm: str) -> None:
    every = choose(
        [masked(*countermeasures())],
        load_model("digits/Linf-0.2/ancra"),
        ThreatModel.parse(norm),
    )
    for item in every:
        known = {stage.through for stage in item.stages} - {None}
        assert item.stages or item.problem
        assert {name.partition(":")[0] for name in known} <= set(STAND_INS)
