"""Common corruptions by name: the benchmark's, what is told of them, and AlexNet's errors.

Hendrycks & Dietterich, "Benchmarking neural network robustness to common corruptions and
perturbations", ICLR 2019. Plain data, which reports use without what makes the images.
"""

from __future__ import annotations

SEVERITIES = (1, 2, 3, 4, 5)

ALEXNET_ERRORS = {
    "gaussian_noise": 0.8816,
    "shot_noise": 0.8883,
    "impulse_noise": 0.9172,
    "defocus_blur": 0.8220,
    "glass_blur": 0.8308,
    "motion_blur": 0.7872,
    "zoom_blur": 0.7957,
    "snow": 0.8680,
    "frost": 0.8315,
    "fog": 0.8236,
    "brightness": 0.5585,
    "contrast": 0.8543,
    "elastic_transform": 0.6480,
    "pixelate": 0.7186,
    "jpeg_compression": 0.6068,
}
"""By corruption, the mean over severities on ImageNet-C: what mCE divides by"""

BENCHMARK = tuple(ALEXNET_ERRORS)
"""The fifteen that ``corruptions_acc`` is the mean of"""

FURTHER = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""Four more, meant for choosing parameters; in no mean"""

CORRECT = "correct_"
"""With a trial's name behind it, a column of samples: 1 where the corrupted sample is classified
correctly, 0 where it is not or the model failed; absent where the corruption means nothing"""


def trial_name(corruption: str, severity: int) -> str:
    """``fog`` at severity 3 → ``fog_3``."""
    return f"{corruption}_{severity}"
