"""Against what ``imagecorruptions-imaug`` makes of three images: ``benchmarks/corruption_reference.py``."""

from pathlib import Path

import numpy as np
import pytest
import torch

from robench.corruptions import CORRUPTIONS, corrupt
from robench.corruptions.digital import elastic_transform
from robench.corruptions.images import cut_to_levels
from robench.seeding import sample_keys

with np.load(Path(__file__).parent / "reference.npz") as _kept:
    REFERENCE = dict(_kept)
REPEATS = 200
EXACT = [name for name, kept in REFERENCE.items() if name != "images" and kept.dtype == np.uint8]
DRAWN = [name for name, kept in REFERENCE.items() if kept.dtype == np.float32]

EXTENTS = (12.5, 16.25, 21.25, 25.0, 30.0)
"""The package's displacements before they are smoothed by a hundredth of the side: it has constants of
its own, and no affine map. Each is drawn up to 0.005 of the side."""

BEYOND = {"motion_blur": (5,)}
"""Severities whose motion is longer than the image: there the package stops, and the image is darker"""

WIDE = {"frost": (0.06, 0.35)}
"""The package draws from photographs, and from one more than the published sets do"""


def inputs_of(image, count=1):
    pixels = torch.from_numpy(REFERENCE["images"][image]).permute(2, 0, 1) / 255
    return pixels.expand(count, -1, -1, -1), sample_keys(3, [f"{image}/{i}" for i in range(count)])


@pytest.mark.parametrize("name", EXACT)
def test_what_draws_nothing_is_the_same(name):
    inputs, keys = inputs_of(1)
    for severity in range(1, 6):
        made = corrupt(inputs, keys, name, severity, "imagenet")[0].permute(1, 2, 0).numpy()
        gap = np.abs(made * 255 - REFERENCE[name][severity - 1]).mean()
        assert gap < 0.3, severity  # of 255 levels


def moments(name, severity, image, count):
    inputs, keys = inputs_of(image, count)
    if name == "elastic_transform":
        extent = 0.005 * EXTENTS[severity - 1]
        made = cut_to_levels(elastic_transform(inputs.double().numpy(), keys, extent, 0.01, 0))
    else:
        made = corrupt(inputs, keys, name, severity, "imagenet").double().numpy()
    if name == "spatter":
        made = made[made.any(axis=(1, 2, 3))]
    return made.mean(axis=(0, 2, 3)), made.var(axis=0).mean(axis=(1, 2))


def check(name, severity, image, count):
    mean, variance, spread = REFERENCE[name][severity - 1][image]
    own_mean, own_variance = moments(name, severity, image, count)
    off, wide = WIDE.get(name, (0.012, 0.15))
    error = 4 * np.sqrt(spread * (1 / count + 1 / REPEATS))
    assert (np.abs(own_mean - mean) < off + error).all(), (own_mean, mean)
    ratio = np.sqrt(own_variance / variance)
    assert (np.abs(ratio - 1) < wide + 2 / np.sqrt(count)).all(), ratio


@pytest.mark.parametrize("name", DRAWN)
def test_what_is_drawn_has_the_same_mean_and_variance(name):
    check(name, 4, 1, 48)


@pytest.mark.slow
@pytest.mark.parametrize("severity", range(1, 6))
@pytest.mark.parametrize("name", DRAWN)
def test_means_and_variances_at_every_severity(name, severity):
    if severity in BEYOND.get(name, ()):
        return
    for image in range(3):
        check(name, severity, image, 400)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_the_package_itself_agrees(name):
    package = pytest.importorskip("imagecorruptions")
    for image in range(3):
        inputs, keys = inputs_of(image)
        for severity in range(1, 6):
            made = corrupt(inputs, keys, name, severity, "imagenet")[0].permute(1, 2, 0).numpy()
            wanted = package.corrupt(REFERENCE["images"][image], severity, name)
            assert np.abs(made * 255 - wanted).mean() < 2


def test_every_corruption_is_held_against_it():
    assert {*EXACT, *DRAWN} == set(CORRUPTIONS)
