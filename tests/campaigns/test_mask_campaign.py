"""From a planted mask to a verdict: some of every family, through all tests and countermeasures."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from mask_gallery import GALLERY, Ground, ground_of, withstands

import robench
from robench.datasets import load_dataset

pytestmark = pytest.mark.slow

N = 16
ONE_SAMPLE = 100 / N
MASKS = [
    *("thermometer", "jpeg", "noise", "reversed-gradient"),
    *("decoy-gate", "votes", "nearest-neighbour", "entropy-detector", "grid-detector"),
    *("temperature", "one-hot", "sharp-softmax"),
    *("memory", "after-calls", "fifth-raises"),
]
CONTROLS = ["straight-through", "mlp"]


@cache
def ground() -> Ground:
    return ground_of("digits/Linf-0.2/standard", 0.2, "digits/Linf-0.2/pgd-at", samples=400)


@pytest.mark.parametrize("name", [*MASKS, *CONTROLS])
def test_it_is_found_out_or_left_alone(name: str, tmp_path: Path) -> None:
    mask, data = GALLERY[name], load_dataset("digits").subset(N)
    (found,) = robench.validate(
        mask.build(ground()),
        data,
        "quick",
        results=tmp_path,
        threat_model="Linf-0.2",
        device="cpu",
        precision="fp32",
    )
    _, left = withstands(mask, ground(), data.batch(range(N)), data.labels)
    assert found.best_known_acc <= 100 * float(left.float().mean()) + ONE_SAMPLE
    told = {item.test for item in found.masked}
    if mask.sound:
        # A suite without strong attacks may be lowered; nothing may look masked.
        assert told <= {"binarisation"}
    else:
        assert told & set(mask.causes)
