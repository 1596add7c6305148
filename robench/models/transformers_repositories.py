"""What the files of an image classifier of ``transformers`` say: its architecture, and its images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from robench.models.architectures.transformers_library import configuration_fields
from robench.records import ArchitectureSpec, InputSpec, PreprocessingSpec

_RESAMPLING: Final = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers"""

_OTHER_STEPS: Final = (
    "do_pad",
    "do_flip_channel_order",
    "rescale_offset",
    "do_thumbnail",
    "do_align_long_axis",
)
"""What a processor may do besides resizing, a crop, scaling and normalising"""

_CROPS_BELOW: Final = 384
"""ConvNeXt's processor resizes to more and crops, but from this size on it only stretches"""

_EXACT: Final = 1e-6


class Described(NamedTuple):
    """What a card takes of such a repository."""

    architecture: ArchitectureSpec
    num_classes: int
    input: InputSpec
    preprocessing: PreprocessingSpec | None


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is of an image classifier of transformers."""
    names = config.get("architectures")
    return isinstance(config.get("model_type"), str) and any(
        "ForImageClassification" in str(name) for name in (names if isinstance(names, list) else ())
    )


def described(config: Mapping[str, Any], processor: Mapping[str, Any]) -> Described:
    """What ``config.json`` and ``preprocessor_config.json`` say.

    Raises:
        ValueError: a preprocessing that no card can say, or fields of other types.
        RobenchError: as :func:`configuration_fields`.
    """
    model_type = str(config["model_type"])
    labels = config.get("id2label")
    num_classes = len(labels) if isinstance(labels, Mapping) else int(config.get("num_labels", 2))
    arguments = configuration_fields(model_type, dict(config))
    channels = int(arguments.pop("num_channels", 3))
    architecture = ArchitectureSpec(name=f"transformers:{model_type}", arguments=arguments)
    preprocessing = _preprocessing(processor)
    white = 255 * float(processor.get("rescale_factor", 1 / 255))
    if not processor.get("do_rescale", True):
        white = 255.0
    normalises = processor.get("do_normalize", True)
    found = InputSpec(
        channels=channels,
        size=_size_of(preprocessing),
        high=1.0 if math.isclose(white, 1, rel_tol=_EXACT) else white,
        mean=processor.get("image_mean") if normalises else (0.0,),
        std=processor.get("image_std") if normalises else (1.0,),
    )
    return Described(architecture, num_classes, found, preprocessing)


def _preprocessing(processor: Mapping[str, Any]) -> PreprocessingSpec:
    kind = str(
        processor.get("image_processor_type") or processor.get("feature_extractor_type") or ""
    )
    resize, size = _asked(processor.get("size") if processor.get("do_resize", True) else None, kind)
    crop: int | None = None
    if odd := [name for name in _OTHER_STEPS if processor.get(name)]:
        raise ValueError(f"a preprocessing unknown here: {odd[0]} of {kind or 'its processor'}")
    if kind.startswith("ConvNext") and resize is not None:
        if resize < _CROPS_BELOW:
            crop = resize
            resize = int(resize / float(processor.get("crop_pct") or 224 / 256))
        else:
            size, resize = (resize, resize), None
    elif kind.startswith("Levit") and resize is not None:
        resize = int(256 / 224 * resize)
    elif processor.get("crop_pct") is not None:
        raise ValueError(f"a preprocessing unknown here: crop_pct of {kind or 'its processor'}")
    if processor.get("do_center_crop") and processor.get("crop_size") is not None:
        cropped = _asked(processor["crop_size"], "")[1]
        if cropped is None or cropped[0] != cropped[1]:
            raise ValueError(f"a preprocessing unknown here: crop_size {processor['crop_size']}")
        crop = cropped[0]
    resample = processor.get("resample", 2)
    return PreprocessingSpec(
        resize=resize, size=size, crop=crop, interpolation=_RESAMPLING.get(resample, str(resample))
    )


def _asked(size: Any, kind: str) -> tuple[int | None, tuple[int, int] | None]:
    """(the shorter side, or height and width) of a processor's ``size``."""
    if isinstance(size, Mapping) and size.keys() == {"shortest_edge"}:
        return int(size["shortest_edge"]), None
    if isinstance(size, Mapping) and size.keys() == {"height", "width"}:
        return None, (int(size["height"]), int(size["width"]))
    if isinstance(size, int):  # as processors were saved before 2023
        return (
            (size, None) if kind.startswith(("ConvNext", "Levit", "CLIP")) else (None, (size, size))
        )
    if size is None:
        return None, None
    raise ValueError(f"a preprocessing unknown here: size {size}")


def _size_of(preprocessing: PreprocessingSpec) -> tuple[int, int] | None:
    if preprocessing.crop is not None:
        return preprocessing.crop, preprocessing.crop
    return preprocessing.size
