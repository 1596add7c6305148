"""Sample panels with smooth images and maps."""

from __future__ import annotations

import numpy as np

from robench.results import SamplePanel


def make_panel(k: int, *, size: int = 8, channels: int = 1, grid: int = 8) -> SamplePanel:
    """k blobs, each moved by the "attack", one attention map all zero if k > 2."""
    rng = np.random.default_rng(k)
    axis = np.linspace(0, 1, size)
    centres = rng.uniform(0.3, 0.7, (k, 2, 1, 1))
    distance = (axis[:, None] - centres[:, 0]) ** 2 + (axis[None, :] - centres[:, 1]) ** 2
    clean = np.repeat(np.exp(-12 * distance)[..., None], channels, axis=-1)
    adversarial = np.clip(clean + 0.2 * rng.choice([-1, 1], clean.shape), 0, 1)
    maps = rng.random((2, k, grid, grid)) ** 4
    if k > 2:
        maps[1, 2] = 0
    labels = np.arange(k) % 10
    return SamplePanel(
        sample_ids=tuple(f"toy/{i:05d}" for i in range(k)),
        clean=clean.astype(np.float32),
        adversarial=adversarial.astype(np.float32),
        clean_maps=maps[0],
        adv_maps=maps[1],
        labels=labels,
        clean_predictions=labels,
        adv_predictions=np.where(np.arange(k) % 2 == 0, (labels + 3) % 10, labels),
    )
