"""Another model in this one's place: it must fit, its weights are in the key, the verdict is not its."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import robench
from robench.errors import AttackError, UnknownNameError
from robench.evaluation.runner import code_from_outside
from robench.models import load_model, wrap_module
from robench.models.wrapper import RobenchModel
from robench.records import AttackSpec, Suite
from robench.stand_ins import other_model
from robench.stand_ins.base import Setting
from robench.stand_ins.catalogue import find_stand_in
from robench.threat_models import ThreatModel

pytestmark = pytest.mark.usefixtures("unexamined")

MODEL = "digits/Linf-0.2/pgd-at"
PARAMS = {"steps": 3, "random_start": False, "loss": "margin"}


def entry(through: str | None) -> AttackSpec:
    name = "direct" if through is None else "transfer"
    return AttackSpec(name=name, attack="pgd", params=PARAMS, through=through)


def broken(model: str, *through: str | None) -> list[list[bool]]:
    stored = robench.evaluate(
        model, "digits", Suite(name="t", attacks=tuple(map(entry, through))), n=40, device="cpu"
    )
    return [[outcome == "broken" for outcome in one.table["outcome"]] for one in stored]


def test_an_identical_model_gives_the_direct_search() -> None:
    direct, same = broken(MODEL, None, f"model:{MODEL}")
    assert 0 < sum(direct) < 40
    assert same == direct


def test_the_model_under_attack_decides() -> None:
    (transferred,) = broken("digits/Linf-0.2/trades", "model:pgd-at")
    (direct,) = broken("digits/Linf-0.2/trades", None)
    assert 0 < sum(transferred) <= sum(direct)


def test_the_other_models_fingerprint_is_in_the_key() -> None:
    model = load_model("digits/Linf-0.2/trades")
    known = load_model(MODEL).summary.fingerprint
    assert code_from_outside(entry("model:pgd-at"), model)["model:pgd-at"] == known


def test_it_is_loaded_once_for_keys_and_search(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def counted(*given: Any) -> RobenchModel:
        calls.append(given)
        return load_model(*given)

    monkeypatch.setattr(other_model, "load_model", counted)
    one = entry("model:trades")
    for count in (1, 2):  # in another evaluation, what lies in its file may have changed
        model = load_model(MODEL)
        for stage in (one, one.model_copy(update={"params": {**PARAMS, "steps": 2}})):
            code_from_outside(stage, model)
        built = find_stand_in("model:trades").build(setting(model, 1))
        assert "trades" in built.description
        code_from_outside(one, model)
        assert len(calls) == count


def setting(model: RobenchModel, channels: int) -> Setting:
    inputs, labels = torch.rand(4, channels, 8, 8), torch.zeros(4, dtype=torch.int64)
    return Setting(model, inputs, labels, ThreatModel.parse("Linf-0.2"), seed=0, batch_size=4)


def test_what_does_not_fit_is_refused_by_name() -> None:
    digits = load_model("digits/Linf-0.2/trades")
    with pytest.raises(AttackError, match=r"resnet10-pgd-at cannot stand in.* 3 channels"):
        find_stand_in("model:resnet10-pgd-at").build(setting(digits, 1))
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    two = wrap_module(flat, num_classes=2, dataset="digits", input={"channels": 1})
    with pytest.raises(AttackError, match="pgd-at cannot stand in: it tells 10 classes"):
        find_stand_in("model:pgd-at").build(setting(two, 1))
    with pytest.raises(UnknownNameError, match="pgd-att"):
        find_stand_in("model:pgd-att")


def test_wrong_sizes_are_refused_by_name() -> None:
    here = setting(load_model("digits/Linf-0.2/trades"), 1)
    small = replace(here, inputs=here.inputs[:, :, :5, :5])
    with pytest.raises(AttackError, match="vit-pgd-at cannot stand in"):
        find_stand_in("model:vit-pgd-at").build(small)
