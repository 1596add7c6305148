import numpy as np
import pytest
import torch

from robench.corruptions import CORRUPTIONS, constants_for, corrupt, corruptions_for
from robench.corruptions.blur import disk
from robench.corruptions.digital import elastic_transform
from robench.corruptions.images import clouds, mirrored, moved, zoom_matrix
from robench.corruptions.spatter import edges
from robench.errors import UnknownNameError, UsageError
from robench.records.corruptions import ALEXNET_ERRORS, BENCHMARK, FURTHER, SEVERITIES
from robench.seeding import sample_keys, uniform

NAMES = list(CORRUPTIONS)
SHAPES = {"grey digits": (1, 8, 8), "colours": (3, 32, 32), "not square": (3, 12, 17)}


def images(count=3, shape=(3, 32, 32)):
    keys = sample_keys(7, [f"image/{i}" for i in range(count)])
    return uniform(keys, shape), sample_keys(0, [f"sample/{i}" for i in range(count)])


def grey(value, count=4, shape=(1, 16, 16)):
    return torch.full((count, *shape), value), images(count)[1]


def test_the_catalogue_has_the_benchmark_and_the_further_ones():
    assert set(NAMES) == {*BENCHMARK, *FURTHER}
    assert (len(BENCHMARK), len(FURTHER), len(ALEXNET_ERRORS)) == (15, 4, 15)
    for found in CORRUPTIONS.values():
        for kind in ("cifar", "imagenet"):
            assert len({len(found.constants(kind, severity)) for severity in SEVERITIES}) == 1


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_the_same_in_any_batch_and_order(name):
    inputs, keys = images(4, (3, 12, 12))
    together = corrupt(inputs, keys, name, 3)
    order = torch.tensor([2, 0])
    torch.testing.assert_close(
        corrupt(inputs[order], keys[order], name, 3), together[order], rtol=0, atol=0
    )
    alone = torch.cat([corrupt(inputs[i : i + 1], keys[i : i + 1], name, 3) for i in range(4)])
    torch.testing.assert_close(alone, together, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_results_are_images_on_the_grey_levels(name, shape):
    if name not in corruptions_for(shape[0]):
        return
    inputs, keys = images(2, shape)
    for severity in (1, 5):
        made = corrupt(inputs, keys, name, severity)
        assert made.shape == inputs.shape
        assert made.dtype == torch.float32
        assert 0 <= made.min() <= made.max() <= 1
        torch.testing.assert_close(made * 255, (made * 255).round(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["gaussian_noise", "fog", "snow", "motion_blur", "frost"])
def test_seeds_severities_and_corruptions_draw_for_themselves(name):
    inputs, _ = images(1)
    one, two = (sample_keys(seed, ["sample/0"]) for seed in (0, 1))
    first = corrupt(inputs, one, name, 2)
    assert not torch.equal(first, corrupt(inputs, two, name, 2))
    assert not torch.equal(first, corrupt(inputs, one, name, 3))
    assert not torch.equal(first, corrupt(inputs, one, "speckle_noise", 2))
    torch.testing.assert_close(first, corrupt(inputs, one, name, 2), rtol=0, atol=0)


def test_gaussian_noise_has_its_standard_deviation():
    made = corrupt(*grey(0.5, 64), "gaussian_noise", 5, "cifar")
    assert made.std() == pytest.approx(0.10, rel=0.02)
    # Levels are cut down, by half a level on average.
    assert made.mean() == pytest.approx(0.5 - 0.5 / 255, abs=0.002)


def test_speckles_are_in_proportion():
    light, dark = (
        float(corrupt(*grey(value, 64), "speckle_noise", 3, "cifar").std()) for value in (0.6, 0.2)
    )
    assert light == pytest.approx(3 * dark, rel=0.05)


def test_shot_noise_is_poisson():
    # Mean and variance of a count are equal, so those of the pixel differ by the rate.
    made = corrupt(*grey(51 / 255, 64), "shot_noise", 5, "imagenet").double()
    counts = (made * 3).round()
    assert counts.mean() == pytest.approx(0.6, rel=0.03)
    assert float((counts == 0).double().mean()) == pytest.approx(np.exp(-0.6), abs=0.01)
    assert float((counts == 1).double().mean()) == pytest.approx(0.6 * np.exp(-0.6), abs=0.01)


def test_without_light_there_is_no_shot_noise():
    assert corrupt(*grey(0.0), "shot_noise", 5).max() == 0


def test_impulses_are_as_many_black_as_white():
    made = corrupt(*grey(0.5, 64), "impulse_noise", 5, "imagenet")
    assert float((made == 0).float().mean()) == pytest.approx(0.135, abs=0.01)
    assert float((made == 1).float().mean()) == pytest.approx(0.135, abs=0.01)


def test_contrast_keeps_means_and_shrinks_the_rest():
    inputs, keys = images(2)
    made = corrupt(inputs, keys, "contrast", 3, "cifar")
    assert made.std() == pytest.approx(0.4 * float(inputs.std()), rel=0.02)
    torch.testing.assert_close(
        made.mean(dim=(2, 3)), inputs.mean(dim=(2, 3)), rtol=0, atol=1.5 / 255
    )


def test_brightness_adds_to_the_value_and_keeps_hue():
    colour = torch.tensor([0.4, 0.2, 0.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    made = corrupt(colour, images(1)[1], "brightness", 4, "cifar")[0, :, 0, 0]
    torch.testing.assert_close(made, torch.tensor([0.6, 0.3, 0.0]), rtol=0, atol=1 / 255)
    assert corrupt(*grey(0.0), "brightness", 2, "cifar").unique().item() == pytest.approx(25 / 255)
    assert corrupt(*grey(0.9), "brightness", 5, "cifar").min() == 1


def test_saturation_shrinks_towards_the_value():
    colour = torch.tensor([1.0, 0.5, 0.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    made = corrupt(colour, images(1)[1], "saturate", 1, "cifar")[0, :, 0, 0]
    torch.testing.assert_close(made, torch.tensor([1.0, 0.85, 0.7]), rtol=0, atol=1.5 / 255)


@pytest.mark.parametrize(
    "name",
    ["defocus_blur", "gaussian_blur", "glass_blur", "motion_blur", "zoom_blur", "pixelate"],
)
@pytest.mark.parametrize("kind", ["cifar", "imagenet"])
def test_what_moves_pixels_leaves_one_grey_alone(name, kind):
    inputs, keys = grey(100 / 255, 2, (1, 11, 9))
    for severity in SEVERITIES:
        made = corrupt(inputs, keys, name, severity, kind)
        torch.testing.assert_close(made, inputs, rtol=0, atol=1.01 / 255)


@pytest.mark.parametrize(("size", "factor"), [(32, 1.0), (32, 1.21), (8, 1.06), (5, 2.5), (1, 1.2)])
def test_enlarging_keeps_a_line_and_the_middle(size, factor):
    matrix = zoom_matrix(size, factor)
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    steps = np.diff(matrix @ np.arange(size))
    np.testing.assert_allclose(steps, steps[:1].repeat(size - 1) if size > 1 else [])
    if factor == 1:
        np.testing.assert_array_equal(matrix, np.eye(size))


def test_motion_is_a_mean_along_its_direction():
    one = np.zeros((2, 1, 5, 9))
    one[:, 0, 2, 4] = 1
    made = moved(one, 1, 100.0, np.array([0.0, -90.0]))
    # What lies up to two pixels to the right, or above, comes here with nearly equal weights.
    np.testing.assert_allclose(made[0, 0, 2, 2:5], 1 / 3, atol=1e-3)
    np.testing.assert_allclose(made[1, 0, 2:5, 4], 1 / 3, atol=1e-3)
    assert np.count_nonzero(made) == 6


@pytest.mark.parametrize("size", [2, 8, 32])
def test_clouds_go_from_none_to_full(size):
    def draw(number, shape):
        return np.random.default_rng(number).uniform(-1, 1, (3, *shape))

    made = clouds(draw, 3, size, 2.0)
    assert made.shape == (3, size, size)
    np.testing.assert_array_equal(made.min(axis=(1, 2)), 0)
    np.testing.assert_array_equal(made.max(axis=(1, 2)), 1)


def test_places_beyond_the_edge_are_mirrored():
    places = np.array([-2.0, -1, 0, 3, 4, 5])
    np.testing.assert_array_equal(mirrored(places, 4, False), [2, 1, 0, 3, 2, 1])
    np.testing.assert_array_equal(mirrored(places, 4, True), [1, 0, 0, 3, 3, 2])
    np.testing.assert_array_equal(mirrored(places, 1, False), 0)


@pytest.mark.parametrize("radius", [0.3, 1.5, 4])
def test_a_lens_keeps_the_light(radius):
    kernel = disk(radius, 0.5)
    assert kernel.sum() == pytest.approx(1)
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1])


def test_no_displacement_is_no_change():
    pixels = images(2)[0].double().numpy()
    np.testing.assert_allclose(elastic_transform(pixels, images(2)[1], 0, 0.1, 0), pixels)


def test_edges_of_a_square_are_its_border():
    levels = np.zeros((12, 12))
    levels[3:9, 3:9] = 200
    found = edges(levels)
    assert found.any()
    assert not found[5:7, 5:7].any()
    assert not found[:2].any()


def test_small_images_have_their_own_constants():
    assert constants_for((1, 8, 8)) == "cifar"
    assert constants_for((3, 224, 224)) == "imagenet"
    inputs, keys = images(1)
    chosen = corrupt(inputs, keys, "contrast", 1)
    torch.testing.assert_close(chosen, corrupt(inputs, keys, "contrast", 1, "cifar"))


def test_colours_mean_nothing_for_grey_images():
    assert "saturate" in corruptions_for(3)
    assert set(corruptions_for(3)) - set(corruptions_for(1)) == {"saturate"}
    with pytest.raises(UsageError, match="saturate has no meaning for images of 1 channels"):
        corrupt(*grey(0.5), "saturate", 1)


def test_nothing_of_nothing():
    assert corrupt(torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64), "fog", 1).shape == (
        (0, 1, 8, 8)
    )


def test_what_there_is_not():
    inputs, keys = images(1)
    with pytest.raises(UnknownNameError, match="fgo"):
        corrupt(inputs, keys, "fgo", 1)
    with pytest.raises(UnknownNameError, match="mnist"):
        corrupt(inputs, keys, "fog", 1, "mnist")
    for severity in (0, 6):
        with pytest.raises(UsageError, match=f"severity is {severity}"):
            corrupt(inputs, keys, "fog", severity)
