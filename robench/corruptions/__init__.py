"""Common corruptions: images as noise, lenses, weather and processing spoil them.

Hendrycks & Dietterich, "Benchmarking neural network robustness to common corruptions and
perturbations", ICLR 2019: fifteen corruptions, four further ones, five severities each. Every draw is
keyed by the sample, the corruption and the severity, so an image is the same whatever it is made with.
"""

from robench.corruptions.catalogue import (
    CONSTANTS,
    CORRUPTIONS,
    Constants,
    constants_for,
    corrupt,
    corruptions_for,
)

__all__ = [
    "CONSTANTS",
    "CORRUPTIONS",
    "Constants",
    "constants_for",
    "corrupt",
    "corruptions_for",
]
