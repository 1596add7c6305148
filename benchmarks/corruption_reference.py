"""What the package ``imagecorruptions-imaug`` makes of three images, for ``tests/corruptions``.

    pip install imagecorruptions-imaug
    python benchmarks/corruption_reference.py tests/corruptions/reference.npz

The images are made here. Of a corruption that draws nothing its result on the second is kept, of the others the
mean and variance over many draws on each.
"""

import sys

import numpy as np

REPEATS = 200
EXACT = (
    "defocus_blur",
    "zoom_blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
    "gaussian_blur",
    "saturate",
)
"""Corruptions that draw nothing"""
DRAWN = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "glass_blur",
    "motion_blur",
    "snow",
    "frost",
    "fog",
    "elastic_transform",
    "speckle_noise",
    "spatter",
)


def own_images() -> np.ndarray:
    """uint8 (3, 32, 32, 3): a slope of colours, a disk before stripes, and soft blobs."""
    y, x = np.mgrid[:32, :32] / 31
    slope = np.stack((x, y, 1 - x * y), axis=-1)
    disk = ((x - 0.5) ** 2 + (y - 0.45) ** 2 < 0.09)[..., None]
    stripes = 0.5 + 0.35 * np.sin(2 * np.pi * 4 * (x + 0.5 * y))[..., None] * [0.4, 0.7, 1.0]
    blobs = np.stack(
        [
            np.exp(-((x - a) ** 2 + (y - b) ** 2) / 0.05)
            for a, b in ((0.3, 0.3), (0.7, 0.4), (0.5, 0.8))
        ],
        axis=-1,
    )
    images = np.stack((slope, np.where(disk, [0.9, 0.3, 0.2], stripes), 0.1 + 0.8 * blobs))
    return np.asarray(np.rint(images.clip(0, 1) * 255).astype(np.uint8))


def main(path: str) -> None:
    from imagecorruptions import corrupt

    images = own_images()
    kept: dict[str, np.ndarray] = {"images": images}
    for name in (*EXACT, *DRAWN):
        kept[name] = np.stack([_told(corrupt, name, severity, images) for severity in range(1, 6)])
    np.savez_compressed(path, **kept)  # type: ignore[arg-type]


def _told(corrupt, name: str, severity: int, images: np.ndarray) -> np.ndarray:  # type: ignore[no-untyped-def]
    if name in EXACT:
        return np.asarray(corrupt(images[1], severity, name))
    np.random.seed(severity)
    moments = []
    for image in images:
        made = np.stack([corrupt(image, severity, name) for _ in range(REPEATS)]) / 255.0
        made = made[made.any(axis=(1, 2, 3))]  # water without a drop comes back as 0 / 0
        each = made.mean(axis=(1, 2))  # (repeats, 3)
        moments.append((each.mean(0), made.var(axis=0).mean((0, 1)), each.var(axis=0)))
    return np.array(
        moments, np.float32
    )  # (3 images, mean | variance of pixels | of means, 3 colours)


if __name__ == "__main__":
    main(sys.argv[1])
