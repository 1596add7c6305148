"""Model cards: what it takes to load a checkpoint, and where it comes from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from robench.records.base import (
    Entry,
    Figure,
    Flag,
    Frozen,
    Name,
    Real,
    SchemaVersion,
    Sha256,
    Table,
    Whole,
    canonical_hash,
)
from robench.threat_models import ThreatModel


def _is_step(value: Any) -> Any:
    if isinstance(value, bool | float):
        raise ValueError(f"{value!r} is no number and no name of an output")
    return value


Step = Annotated[int | str, BeforeValidator(_is_step)]

OutputPath = tuple[Step, ...]
"""How to reach a tensor in what ``forward`` returns: indices and keys, outermost first."""

Size = tuple[Annotated[Whole, Field(ge=1)], Annotated[Whole, Field(ge=1)]]
"""Height and width in pixels."""


PROGRAM = "program"
"""The architecture's name in the card of a file that brings its network."""

LIBRARIES = ("torchvision", "timm", "transformers")
"""Collections whose architectures are named ``LIBRARY:NAME``."""


class ArchitectureSpec(Frozen):
    """Which module to build, without weights."""

    name: str
    """A registered architecture, ``torchvision:NAME``, ``timm:NAME``, ``transformers:TYPE``, ``package.module:callable``,
    or :data:`PROGRAM`."""
    arguments: Table = Field(default_factory=dict)

    @property
    def imports_code(self) -> bool:
        """Whether building it imports a module that the author chose."""
        library, colon, _ = self.name.partition(":")
        return bool(colon) and library not in LIBRARIES

    @property
    def names_code(self) -> bool:
        """Whether loading runs what the author chose: a callable, or a program among the weights."""
        return self.name == PROGRAM or self.imports_code


class WeightsSpec(Frozen):
    """Where the parameters are and how to find them in the file."""

    path: str
    """Relative to the card, absolute, ``package:NAME/inside/it``, or an https URL."""
    sha256: Sha256
    key: str | None = None
    """Dotted path to the state dict inside the file; None: the file is the state dict."""
    strip_prefix: str = ""
    """Prefix to remove from every parameter name, such as ``module.``."""


class InputSpec(Frozen):
    """What the network expects, given that robench's inputs are RGB in [0, 1].

    The wrapper computes ``(low + x · (high − low) − mean) / std``, on the channels in the given
    order.
    """

    channels: Whole = Field(3, ge=1)
    size: Size | None = None
    """Height and width, where the architecture fixes them."""
    low: Real = 0.0
    high: Real = 1.0
    mean: tuple[Real, ...] | None = None
    std: tuple[Real, ...] | None = None
    channel_order: Literal["RGB", "BGR"] = "RGB"

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _for_all_channels(cls, value: Any) -> Any:
        if isinstance(value, str | bool):
            raise ValueError("give a number, or one for each channel")
        return (value,) if isinstance(value, (int, float)) else value

    @model_validator(mode="after")
    def _consistent(self) -> InputSpec:
        if self.high <= self.low:
            raise ValueError(f"high ({self.high}) must be above low ({self.low})")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, self.channels):
                raise ValueError(f"{name} has {len(values)} values for {self.channels} channels")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("std must be positive")
        return self


class PreprocessingSpec(Frozen):
    """How an image of any size becomes the pixels that are evaluated and attacked.

    ``resize=256, crop=224`` is the field's preprocessing for ImageNet; ``size=(32, 32)``
    stretches to exactly that size.
    """

    resize: Whole | None = Field(None, ge=1)
    """Length of the shorter side, keeping the aspect ratio."""
    crop: Whole | None = Field(None, ge=1)
    """Side of the central square that is kept; a smaller image is refused, or filled up with black."""
    size: Size | None = None
    """Height and width to stretch to, instead of ``resize``."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"

    @model_validator(mode="after")
    def _one_way(self) -> PreprocessingSpec:
        if self.size is not None and self.resize is not None:
            raise ValueError("size and resize exclude each other")
        return self


class ForwardSpec(Frozen):
    """How to call the network and where its logits are."""

    arguments: Table = Field(default_factory=dict)
    """Extra keyword arguments for every forward call."""
    output: OutputPath = ()
    """Path to the logits; empty: ``forward`` returns them."""
    outputs: dict[str, OutputPath] = Field(default_factory=dict)
    """Further named logits that an attack may aim at (auxiliary heads)."""
    outputs_arguments: Table = Field(default_factory=dict)
    """Keyword arguments that replace ``arguments`` when a named output is asked for."""

    @field_validator("output", mode="before")
    @classmethod
    def _one_step(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (int, str)) else value


class AttentionSpec(Frozen):
    """How to look at the network's attention and features."""

    method: Literal["grad_cam", "rollout", "feature_sum", "none"] = "grad_cam"
    layer: str | None = None
    """Module whose output is the feature map; None: the last spatial one."""
    feature_layer: str | None = None
    """Module whose *input* is the penultimate feature vector; None: the last linear layer."""


class Examination(Frozen):
    """What the doctor said of a model when its card was made."""

    n: Whole = Field(ge=1)
    """Samples looked at."""
    data: str
    """Which they were: name, split and fingerprint."""
    date: str
    findings: tuple[Flag, ...]
    """Empty: nothing was found."""


class Provenance(Frozen):
    """Where the weights come from and what was said about them."""

    paper: str | None = None
    authors: str | None = None
    link: str | None = None
    venue: str | None = None
    year: Whole | None = None
    command: str | None = None
    """The command that reproduces the weights."""
    training_data: str | None = None
    seed: Whole | None = None
    epochs: Whole | None = None
    recipe: Table = Field(default_factory=dict)
    """The recipe's parameters as used."""
    validation: dict[str, Figure] = Field(default_factory=dict)
    """Figures on the validation split that chose the checkpoint, in percent."""
    reported: dict[str, Figure] = Field(default_factory=dict)
    """Figures that the authors report, in percent; never mixed with measured ones."""
    measured: dict[str, Entry] = Field(default_factory=dict)
    """Figures that we measured, with n, data and command among them."""
    examination: Examination | None = None
    """What ``robench doctor`` found when the card was made; None: not asked."""
    versions: dict[str, str] = Field(default_factory=dict)
    notes: str | None = None


class ModelCard(Frozen):
    """Everything needed to turn a weights file into a model that robench can evaluate."""

    schema_version: SchemaVersion = 1
    name: Name
    dataset: Name
    """The data set it classifies, as robench names it."""
    num_classes: Whole = Field(ge=2, le=1_000_000)
    threat_model: ThreatModel
    """What it is evaluated under unless told otherwise."""
    defense: str
    """The recipe's name, ``standard`` for none."""
    display_name: str | None = None
    architecture: ArchitectureSpec
    weights: WeightsSpec
    input: InputSpec = Field(default_factory=lambda: InputSpec())
    preprocessing: PreprocessingSpec | None = None
    """How images of other sizes are prepared for it; None: as the data set does."""
    forward: ForwardSpec = Field(default_factory=lambda: ForwardSpec())
    attention: AttentionSpec = Field(default_factory=lambda: AttentionSpec())
    draws: Whole | None = Field(None, ge=2)
    """Of one verdict, of a network that is meant to have random outputs; None: it has none"""
    provenance: Provenance = Field(default_factory=lambda: Provenance())

    @field_validator("threat_model")
    @classmethod
    def _untargeted(cls, threat_model: ThreatModel) -> ThreatModel:
        if threat_model.goal != "untargeted":
            raise ValueError(
                "a card's threat model is a ball; evaluate with --goal targeted, or --suite corruptions"
            )
        return threat_model

    @property
    def id(self) -> str:
        """``dataset/threat/name``: the card's folder below ``model_zoo``."""
        return f"{self.dataset}/{self.threat_model.slug}/{self.name}"

    @property
    def fingerprint(self) -> str:
        """Hash of all that determines the numbers: weights, architecture, input, forward, attention."""
        parts = self.model_dump(
            mode="json", include={"num_classes", "architecture", "input", "forward", "attention"}
        )
        weights = self.weights.model_dump(mode="json", exclude={"path"})
        return canonical_hash({**parts, "weights": weights})
