"""Rules that the records of one model must keep, on records made by hand."""

from __future__ import annotations

from typing import Any

import pytest
from record_factory import make_stored

from robench.records import AttackSpec
from robench.reporting.contradictions import contradictions
from robench.results import StoredRecord

N = 200


def record(robust: str, kind: str = "pgd", *, threat: str = "Linf-0.2", **params: Any) -> Any:
    """One record; ``robust`` says how many samples are broken and how many survive, ``"50B150S"``."""
    broken, _, rest = robust.partition("B")
    letters = "B" * int(broken) + "S" * int(rest.removesuffix("S"))
    name = "-".join([kind, *(f"{k}{v}" for k, v in params.items())])
    spec = AttackSpec(name=name.replace("=", ""), attack=kind, params=params)
    return make_stored(letters, threat=threat, spec=spec, attack=name)


def rules(*records: StoredRecord) -> list[str]:
    return [found.rule for found in contradictions(records)]


PGD, FGSM = {"steps": 20}, {"steps": 1}


@pytest.mark.parametrize(
    ("rule", "weaker", "stronger"),
    [
        ("one_step_beats_many", ("pgd", FGSM, "Linf-0.2"), ("pgd", PGD, "Linf-0.2")),
        ("less_beats_more", ("pgd", {"steps": 10}, "Linf-0.2"), ("pgd", PGD, "Linf-0.2")),
        ("less_beats_more", ("apgd", {}, "Linf-0.2"), ("apgd", {"restarts": 5}, "Linf-0.2")),
        ("black_box_beats_gradients", ("square", {}, "Linf-0.2"), ("pgd", PGD, "Linf-0.2")),
        ("not_falling_with_eps", ("pgd", PGD, "Linf-0.1"), ("pgd", PGD, "Linf-0.2")),
    ],
)
def test_a_weaker_attack_that_breaks_more_is_told(rule: str, weaker: Any, stronger: Any):
    def both(weak: str, strong: str) -> list[str]:
        return rules(
            *(
                record(robust, kind, threat=threat, **params)
                for robust, (kind, params, threat) in ((weak, weaker), (strong, stronger))
            )
        )

    assert both("60B140S", "30B170S") == [rule]
    assert both("30B170S", "60B140S") == []
    # Two samples are no evidence, of 200 or of 500.
    assert both("32B168S", "30B170S") == []
    assert both("32B468S", "30B470S") == []


def test_what_both_break_says_nothing():
    """The same samples, or others in equal number: McNemar sees no difference."""
    one, two = (
        make_stored("B" * 40 + "S" * 60, spec=_spec(1)),
        make_stored("S" * 60 + "B" * 40, spec=_spec(20)),
    )
    assert rules(one, two) == []


def _spec(steps: int) -> AttackSpec:
    return AttackSpec(name=f"pgd-{steps}", attack="pgd", params={"steps": steps})


def test_evidence_has_the_figures():
    (found,) = contradictions([record("60B140S", **FGSM), record("30B170S", **PGD)])
    assert found.points == pytest.approx(15)
    assert "broke 30 that pgd-steps20 under Linf-0.2 did not, and missed 0" in found.evidence
    assert found.asks_for


def test_of_a_ball_with_one_image_for_all_only_one_class_survives():
    """Two classes: 100 of 200 can be right for mid-grey."""
    assert rules(record("0B200S", threat="Linf-0.5", **PGD)) == ["large_eps_does_not_reach_chance"]
    assert rules(record("100B100S", threat="Linf-0.5", **PGD)) == []
    assert rules(record("0B200S", threat="Linf-0.5", **FGSM)) == []
    assert rules(record("0B200S", threat="Linf-0.4", **PGD)) == []
    assert rules(record("0B200S", "square", threat="Linf-0.5")) == []


def test_survivors_that_another_record_has_wrong_without_an_attack():
    right, wrong = (
        make_stored("S" * 100, spec=_spec(20)),
        make_stored("C" * 50 + "S" * 50, spec=_spec(40)),
    )
    assert rules(right, wrong) == ["attacked_above_clean"]


def test_other_models_and_other_data_are_not_compared():
    one = make_stored("B" * 60 + "S" * 40, spec=_spec(1))
    assert rules(one, make_stored("S" * 100, spec=_spec(20), model="other")) == []
    assert rules(one, make_stored("S" * 100, spec=_spec(20), data="b")) == []
    assert rules(one, make_stored("S" * 100, spec=_spec(20), threat="L2-0.2")) == []
