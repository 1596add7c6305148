"""Flags that the attacks themselves raise."""

from __future__ import annotations

from robench.evaluation.validity import flag_few_classes, flag_gradients, flag_square
from robench.records import AttackSpec


def test_square_and_gradients() -> None:
    assert flag_square(1, 500) is None  # 0.2 points
    flag = flag_square(2, 500)
    assert flag is not None
    assert flag.count == 2
    assert flag_gradients(0, 0, 10) == []
    assert [f.name for f in flag_gradients(3, 1, 10)] == ["zero_gradients", "nonfinite_gradients"]


def test_more_targets_than_wrong_classes() -> None:
    spec = AttackSpec(name="fab-t", attack="fab", params={"targets": 9})
    assert flag_few_classes(spec, 10) is None
    flag = flag_few_classes(spec, 3)
    assert flag is not None
    assert "2 target classes" in flag.evidence
