"""Adversarial inputs of others, judged: on a network whose border lies at a known brightness."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import brightness_network
import numpy as np
import pytest
import torch
from torch import Tensor

import robench
from robench.datasets import ArrayDataset
from robench.errors import DataError, UsageError
from robench.evaluation.adjudicate import Adjudicator
from robench.inspection.eight_bits import in_eight_bits
from robench.inspection.verification import reverify
from robench.models import wrap_module
from robench.records import Outcome
from robench.reporting.leaderboard import build_leaderboard
from robench.reporting.model_results import collect
from robench.results import Store
from robench.threat_models import ThreatModel

pytestmark = pytest.mark.usefixtures("unexamined")

BALL = ThreatModel.of("Linf", "0.0153")
"""3.9 grey levels"""

CASES = {  # clean level, label, adversarial level
    "a find that is one in 8 bits too": (61, 0, 64.0),
    "a find between two grey levels": (60, 0, 63.8),
    "outside the ball": (60, 0, 64.0),
    "outside the box": (60, 0, None),
    "not finite": (60, 0, torch.nan),
    "classified correctly": (60, 0, 63.0),
    "misclassified without it": (60, 1, 64.0),
    "the clean input itself": (60, 0, 60.0),
}
"""Of three classes the first is left at a brightness of 1/4: at 63.75 of 255 levels"""

SHAPE = (3, 2, 4)
IDS = [f"case/{name}" for name in CASES]


def grey(levels: list[float]) -> Tensor:
    """Images of one brightness each, in [0, 1]."""
    return (torch.tensor(levels) / 255).view(-1, 1, 1, 1).expand(-1, *SHAPE).clone()


MODEL = wrap_module(
    brightness_network.trained(3), num_classes=3, name="grey", threat_model=BALL, dataset="grey"
)
CLEAN = grey([clean for clean, _, _ in CASES.values()])
SAMPLES = ArrayDataset(
    CLEAN,
    torch.tensor([label for _, label, _ in CASES.values()]),
    name="grey",
    num_classes=3,
    sample_ids=IDS,
)
GIVEN = grey([60.0 if level is None else level for _, _, level in CASES.values()])
GIVEN[3, 0, 0, 0] = -0.1


def judge(adv_inputs: Any, results: Path | None = None, **fields: Any) -> Any:
    return robench.judge(MODEL, adv_inputs, SAMPLES, results=results, device="cpu", **fields)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judged")


@pytest.fixture(scope="module")
def stored(folder: Path) -> Any:
    """The record of all cases, from a file."""
    np.savez(folder / "theirs.npz", x_adv=GIVEN.numpy(), y=SAMPLES.labels.numpy())
    return judge(folder / "theirs.npz", folder)


def test_every_input_is_a_find_or_has_its_reason(stored: Any) -> None:
    judged = stored.record.judged
    assert (judged.source, judged.inputs, judged.finds) == ("theirs", 8, 2)
    assert judged.not_counted == {
        "misclassified without it": 1,
        "not finite": 1,
        "outside the box": 1,
        "outside the ball": 1,
        "classified correctly": 2,
    }
    assert judged.outside_ball_by == pytest.approx([4 / 255 - BALL.radius] * 2, abs=1e-7)
    assert judged.outside_box_by == pytest.approx([0.1] * 2, abs=1e-7)
    assert judged.finds_in_8_bits == 1
    assert judged.read_as == "array 'x_adv', float32 in [0, 1], NCHW, in the data set's order"


def test_the_record_is_like_any_other(stored: Any) -> None:
    record, table = stored.record, stored.table.set_index("sample_id")
    assert record.attack.name == f"judged-theirs-{record.judged.sha256[:8]}"
    assert record.count(Outcome.BROKEN) == 2
    assert record.count(Outcome.SURVIVED) == 5
    assert record.count(Outcome.CLEAN_ERROR) == 1
    broken = table[table["outcome"] == "broken"]
    assert list(broken.index) == IDS[:2]
    assert list(broken["adv_prediction"]) == [1, 1]
    assert list(broken["perturbation_size"]) == pytest.approx([3 / 255, 3.8 / 255], abs=1e-7)
    assert set(broken["broken_by"]) == {record.attack.name}
    assert list(table["message"][2:5]) == [
        "outside the ball by 0.000386",
        "outside the box by 0.1",
        "not finite",
    ]
    # What lies outside, or is the clean input, is nothing to show.
    assert list(table["adv_prediction"].isna()) == [False, False, *[True] * 3, False, True, True]


def test_its_verdicts_hold_when_they_are_judged_again(folder: Path, stored: Any) -> None:
    kept = Store(folder).adversarial_rows(stored.record.key)
    looked_at, differing = reverify(stored, kept, MODEL, SAMPLES, device=torch.device("cpu"))
    assert (looked_at, differing) == (3, {})


def test_the_leaderboard_takes_it_for_best_known_alone(folder: Path, stored: Any) -> None:
    robench.evaluate(MODEL, SAMPLES, "quick", results=folder, device="cpu")
    records = list(Store(folder).records())
    row = build_leaderboard(records).iloc[0]
    (result,) = collect(records)
    column = stored.record.attack.name.replace("-", "_")
    assert row[f"{column}_acc"] == 100 * 5 / 8
    assert len(result.protocol) == len(result.attacks) - 1
    assert row["robust_acc"] == 100 * result.robust.mean()
    assert row["best_known_acc"] <= row["robust_acc"]
    assert row["rank"] == 1


def test_the_same_inputs_are_one_record_however_they_are_brought(
    tmp_path: Path, folder: Path, stored: Any
) -> None:
    content = (folder / "theirs.npz").read_bytes()
    renamed = tmp_path / "=cmd & co.npz"
    renamed.write_bytes(content)
    again = judge(renamed, folder)
    assert again.record.key == stored.record.key
    assert again.record.attack.name.startswith("judged-_cmd_co-")
    assert set(again.table["broken_by"].dropna()) == {again.record.attack.name}
    as_tensors = judge({"adv": GIVEN.numpy()[[1, 0]], "ids": [IDS[1], IDS[0]]})
    assert as_tensors.record.judged.source == "tensors"
    assert as_tensors.record.key != stored.record.key
    assert as_tensors.record.count(Outcome.BROKEN) == 2
    assert as_tensors.record.judged.not_counted == {}
    assert as_tensors.record.n == 8


def test_a_batch_size_changes_nothing(stored: Any) -> None:
    few = judge(GIVEN, batch_size=2)
    assert few.record.judged == stored.record.judged.model_copy(
        update={
            "source": "tensors",
            "sha256": few.record.judged.sha256,
            "read_as": "float32 in [0, 1], NCHW, in the data set's order",
        }
    )
    assert few.same_outcomes(stored.samples)
    assert list(few.table["message"]) == list(stored.table["message"])


def test_without_n_inputs_may_be_of_the_whole_data_set() -> None:
    """The command takes 500 samples unless it is told otherwise; here, three."""
    from robench.inspection.judging import judge as judge_request

    request = robench.Request(models=(MODEL,), dataset=SAMPLES, at_most=3, device="cpu")
    assert judge_request(request, GIVEN).record.n == 8
    few = SAMPLES.subset(3)
    inputs = few.batch(range(3))
    assert judge_request(request, inputs).record.n == 3
    assert judge_request(request, {"adv": GIVEN[:1], "ids": few.sample_ids[:1]}).record.n == 3
    with pytest.raises(DataError, match="8 inputs without ids for 3 samples"):
        judge_request(replace(request, n=3), GIVEN)
    with pytest.raises(DataError, match="7 inputs without ids for 3 samples"):
        judge_request(request, GIVEN[:7])


def test_nothing_is_filed_of_inputs_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="have shape"):
        judge(torch.zeros(8, 3, 2, 5), tmp_path / "out")
    with pytest.raises(UsageError, match="within one radius, not for 2"):
        judge(GIVEN, tmp_path / "out", eps="0.01,0.02")
    assert list(tmp_path.iterdir()) == []


class TestEightBits:
    """Rounding to grey levels, against levels worked out by hand."""

    def rounded(self, clean: float, adversarial: float) -> tuple[float, bool, bool]:
        """The level that becomes of one, and whether it is a find and in the ball."""
        points, verdicts = in_eight_bits(
            grey([adversarial]), grey([clean]), torch.tensor([0]), Adjudicator(MODEL, BALL)
        )
        level = points * 255
        assert torch.allclose(level, level.round(), atol=1e-4)
        return round(float(level.mean()), 3), bool(verdicts.broken), bool(verdicts.allowed)

    def test_the_nearest_level_is_taken_inside_the_ball(self) -> None:
        assert self.rounded(61, 63.8) == (64, True, True)
        assert self.rounded(61, 63.4) == (63, False, True)
        assert self.rounded(61, 64.0) == (64, True, True)

    def test_outside_the_next_one_towards_the_clean_image_is(self) -> None:
        assert self.rounded(60, 63.8) == (63, False, True)
        assert self.rounded(68, 64.2) == (65, True, True)

    def test_a_clean_image_between_levels_may_leave_no_level_at_all(self) -> None:
        assert self.rounded(60.5, 64.3) == (64, True, True)

    def test_each_image_is_rounded_by_itself(self) -> None:
        clean, points = grey([60, 61]), grey([63.8, 63.8])
        found, verdicts = in_eight_bits(
            points, clean, torch.tensor([0, 0]), Adjudicator(MODEL, BALL)
        )
        assert (found * 255).round().amax(dim=(1, 2, 3)).tolist() == [63, 64]
        assert verdicts.broken.tolist() == [False, True]
        assert torch.equal(verdicts.prediction, MODEL(found).argmax(dim=1))
