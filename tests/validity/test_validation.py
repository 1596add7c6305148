"""From a model to a verdict, on networks whose robustness is known."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robench
from robench.datasets import ArrayDataset
from robench.errors import UsageError
from robench.evaluation.runner import Silent
from robench.models import wrap_module
from robench.records import AttackSpec, Diagnosis, Suite, Validation
from robench.reporting.leaderboard import build_leaderboard, leaderboard_csv
from robench.reporting.page import build_page
from robench.results import Store
from robench.results.validations import Validations
from robench.validity import countermeasures, validation
from robench.validity.countermeasures import Countermeasure

N = 24
SUITE = Suite(name="few", attacks=(AttackSpec(name="pgd-3", attack="pgd", params={"steps": 3}),))


class Stairs(nn.Module):
    """The mean pixel decides between two classes, in steps without a slope."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.masked = masked
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, inputs: Tensor) -> Tensor:
        lead = self.scale * (inputs.mean(dim=(1, 2, 3)) - 0.5)
        if self.masked:
            lead = lead * 0 + lead.detach().floor() + 0.5
        return torch.stack((-lead, lead), dim=1)


def data(lead: float = 0.08) -> ArrayDataset:
    labels = torch.arange(N) % 2
    inputs = 0.5 + lead * (2 * labels - 1)[:, None, None, None] * torch.ones(N, 1, 4, 4)
    return ArrayDataset(inputs, labels, num_classes=2)


@pytest.fixture(autouse=True)
def few_countermeasures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the catalogue that this needs, with small budgets, and no test but the free ones."""

    def stage(name: str, kind: str, **params: Any) -> AttackSpec:
        return AttackSpec(name=name, attack=kind, params=params)

    known = [
        Countermeasure(
            name="scale-free", summary="", always=True, stages=(stage("pma", "pma", steps=4),)
        ),
        Countermeasure(
            name="square-more", summary="", stages=(stage("square", "square", queries=60),)
        ),
    ]
    monkeypatch.setattr(
        countermeasures, "countermeasures", lambda: {item.name: item for item in known}
    )
    monkeypatch.setattr(validation, "diagnose", lambda *_: [])


def validate(model: nn.Module, folder: Path, **fields: Any) -> Validation:
    options = {"threat_model": "Linf-0.1", "device": "cpu", "precision": "fp32"} | fields
    found = robench.validate(model, data(), SUITE, results=folder, **options)
    assert len(found) == 1
    return found[0]


def test_a_sound_model_s_number_stands(tmp_path: Path) -> None:
    found = validate(Stairs(masked=False), tmp_path, threat_model="Linf-0.05")
    assert (found.verdict, found.robust_acc, found.best_known_acc) == ("stands", 100, 100)
    assert {item.outcome for item in found.diagnoses} == {"sound"}
    (trial,) = found.trials
    assert (trial.countermeasure, trial.tried, trial.finds) == ("scale-free", True, 0)


def test_a_masked_model_is_found_out_and_its_number_lowered(tmp_path: Path) -> None:
    found = validate(Stairs(masked=True), tmp_path)
    assert (found.verdict, found.robust_acc, found.best_known_acc) == ("lowered", 100, 0)
    assert {"flat_margin", "gradient_mismatch"} & {item.test for item in found.masked}
    broke = {trial.countermeasure: trial.finds for trial in found.trials if trial.tried}
    assert broke == {"scale-free": 0, "square-more": N}
    # What this robench cannot do is said, by name.
    assert {t.countermeasure for t in found.trials if not t.tried} >= {"bpda"}

    store = Store(tmp_path)
    records = list(store.records())
    board = build_leaderboard(records, validations=Validations(store).all())
    (row,) = board.to_dict("records")
    assert (row["robust_acc"], row["best_known_acc"], row["validated"]) == (100, 0, "lowered")
    assert row["rank"] == 1  # the countermeasures are no attack that others lack
    assert not any(name.startswith("countermeasures") for name in row)
    assert b"validated" not in leaderboard_csv(build_leaderboard(records))
    page = build_page(board, validations=[found])
    assert "square-more" in page
    assert "95 % interval 85.75 to 100.00" in page


def test_what_nothing_answers_is_unreliable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Diagnosis(test="mine", outcome="masked", evidence="odd", asks_for=("my-attack",))
    monkeypatch.setattr(validation, "diagnose", lambda *_: [said])
    found = validate(Stairs(masked=False), tmp_path, threat_model="Linf-0.05")
    assert found.verdict == "unreliable"
    assert found.reasons == ("mine: my-attack could not be tried",)
    store = Store(tmp_path)
    board = build_leaderboard(store, validations=Validations(store).all())
    assert board["unreliable"][0] == "mine"


def test_inputs_that_were_made_for_another_model_are_evidence(tmp_path: Path) -> None:
    """The sound model's inputs break the masked one, which its own attack does not."""
    spec = AttackSpec(name="pgd-8", attack="pgd", params={"steps": 8})
    suite = Suite(name="more", attacks=(spec,))
    masked, sound = (
        wrap_module(
            Stairs(mask),
            num_classes=2,
            name=name,
            threat_model="Linf-0.1",
            input={"channels": 1},
        )
        for mask, name in ((True, "masked"), (False, "sound"))
    )
    options: Any = {"results": tmp_path, "device": "cpu", "precision": "fp32", "progress": False}
    (alone,) = robench.validate(masked, data(), suite, **options)
    robench.transfer([masked, sound], data(), suite, **options)
    (found,) = robench.validate(masked, data(), suite, **options)
    (key,) = found.transfers
    assert Store(tmp_path).read(key).record.made_for.model.name == "sound"  # type: ignore[union-attr]
    assert (alone.transfers, alone.key == found.key) == ((), False)
    assert "transfer_beats_direct" in {item.test for item in found.masked}
    assert robench.validate(masked, data(), suite, **options) == [found]
    (other,) = robench.validate(sound, data(), suite, **options)
    (told,) = (item for item in other.diagnoses if item.test == "transfer_beats_direct")
    assert (told.outcome, told.value, told.threshold) == ("sound", 100.0, 0.0)
    assert told.evidence == (
        "of what was made for 1 other models that for masked by pgd-8 breaks most: it leaves 100.0 % "
        "of 24 samples, the attack itself 0.0 %"
    )


class _Jobs(Silent):
    def __init__(self) -> None:
        self.made = 0

    def job_started(self, model: str, attack: str, steps: int, cached: bool) -> None:
        self.made += not cached


def test_what_is_there_is_not_made_again_and_what_was_lost_is(tmp_path: Path) -> None:
    first, again, third = _Jobs(), _Jobs(), _Jobs()
    found = validate(Stairs(masked=True), tmp_path, listener=first)
    assert validate(Stairs(masked=True), tmp_path, listener=again) == found
    assert (first.made, again.made) == (2, 0)
    # An interruption between the records and the verdict: the records are read.
    Validations(Store(tmp_path)).path_of(found.key).unlink()
    made = validate(Stairs(masked=True), tmp_path, listener=third)
    assert third.made == 0
    told = {"seconds": 0.0, "created": ""}
    assert made.model_copy(update=told) == found.model_copy(update=told)


def test_records_of_another_network_under_the_name_are_left_out_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    validate(Stairs(masked=False), tmp_path, threat_model="Linf-0.05")
    other = Stairs(masked=False)
    other.scale.data.mul_(2)
    with caplog.at_level(logging.WARNING):
        found = validate(other, tmp_path, threat_model="Linf-0.05")
    assert "are of another network than the one that it names now" in caplog.text
    assert found.model.id in caplog.text
    assert len(list(Validations(Store(tmp_path)).all())) == 2


def test_samples_without_a_verdict_make_it_unreliable(tmp_path: Path) -> None:
    class Fails(Stairs):
        def forward(self, inputs: Tensor) -> Tensor:
            if bool((inputs[:, 0, 0, 0] == 1).any()):
                raise RuntimeError("not these")
            return super().forward(inputs)

    given = data()
    inputs = given.batch(range(8))
    inputs[:3, 0, 0, 0] = 1
    given = ArrayDataset(inputs, given.labels[:8], num_classes=2)
    (found,) = robench.validate(
        Fails(masked=False),
        given,
        SUITE,
        results=tmp_path,
        threat_model="Linf-0.02",
        device="cpu",
        precision="fp32",
    )
    assert found.verdict == "unreliable"
    (said,) = [item for item in found.masked if item.test == "errored_samples"]
    assert "3 of 8 samples errored" in said.evidence


def test_targets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not against targets"):
        validate(Stairs(masked=False), tmp_path, threat_model="Linf-0.1-targeted-next")
