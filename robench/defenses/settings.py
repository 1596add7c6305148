"""How a network is trained, whatever the loss, and what each data set starts from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

from pydantic import Field

from robench.records.base import Frozen, Real, Whole


class TrainingSettings(Frozen):
    """Optimiser, schedule, augmentation and validation of one training run."""

    epochs: Whole = Field(30, ge=1)
    batch_size: Whole = Field(128, ge=2)
    """Samples a step, over all devices together. An incomplete last batch is left out."""
    optimiser: Literal["sgd", "adam"] = "sgd"
    """SGD with Nesterov momentum, or Adam with decoupled weight decay."""
    lr: Real = Field(0.1, gt=0)
    """Largest learning rate of the schedule."""
    momentum: Real = Field(0.9, ge=0, lt=1)
    weight_decay: Real = Field(5e-4, ge=0)
    schedule: Literal["one-cycle", "cosine", "steps", "constant"] = "one-cycle"
    """``one-cycle``: up linearly, down along a cosine; ``steps``: divide by 10 at ``milestones``."""
    warmup: Real = Field(0.2, ge=0, lt=1)
    """Share of the run in which ``one-cycle`` goes up."""
    milestones: tuple[Real, ...] = (0.5, 0.75)
    """Shares of the run after which ``steps`` divides."""
    ema: Real = Field(0.0, ge=0, lt=1)
    """Decay a step of an exponential moving average of the weights; 0: none."""
    clip: Real = Field(0.0, ge=0)
    """Largest L2 norm of the gradient; 0: unlimited."""
    eps_warmup: Real = Field(0.0, ge=0, le=1)
    """Share of the run in which ε grows to its value, epoch by epoch. Transformers need it."""
    shift: Whole = Field(0, ge=0)
    """Augmentation: random shift by up to so many pixels, zeros coming in."""
    flip: bool = False
    """Augmentation: random horizontal flip."""
    validation_steps: Whole = Field(10, ge=1)
    """Steps of the PGD attack that chooses the checkpoint."""
    validate_every: Whole = Field(1, ge=1)
    """Epochs between validations; the last epoch is always validated."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """``auto``: bfloat16 autocast where a CUDA device has it, fp32 elsewhere."""
    threads: Whole = Field(0, ge=0)
    """CPU threads, 0: as torch is set. Sums are split by thread, so the last bits depend on it."""

    def lr_at(self, progress: float) -> float:
        """Learning rate after the share ``progress`` in [0, 1] of all steps.

        Not a scheduler of torch: what depends on the share alone has no state to be resumed.
        """
        return self.lr * self._factor(progress)

    def eps_share(self, epoch: int) -> Fraction:
        """The share of ε that epoch number ``epoch`` (from 0) trains against."""
        warm = math.ceil(self.eps_warmup * self.epochs)
        return min(Fraction(1), Fraction(epoch + 1, warm + 1))

    def _factor(self, progress: float) -> float:
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "steps":
            return 10.0 ** -sum(progress >= milestone for milestone in self.milestones)
        start = self.warmup if self.schedule == "one-cycle" else 0.0
        if progress < start:
            # Not from 0: the first step would be lost.
            return 0.04 + 0.96 * progress / start
        return 0.5 * (1 + math.cos(math.pi * (progress - start) / (1 - start)))


@dataclass(frozen=True)
class Defaults:
    """What a run on a data set starts from unless told otherwise; its card records what was used.

    Args:
        threat_model: what the field uses on this data.
        architecture: a network of fitting size; None: the user must choose.
        arguments: the architecture's, used with the default architecture only.
        settings: values of :class:`TrainingSettings`.
    """

    threat_model: str = "Linf-8/255"
    architecture: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


_PHOTOGRAPHS = {"shift": 4, "flip": True}

_DEFAULTS = {
    # Four narrow blocks beat one wide block of the same size by 10 points of robust accuracy on
    # the validation split; small batches and averaged weights make up for the few samples.
    "digits": Defaults(
        "Linf-0.2",
        "digits_resnet",
        {"width": 16, "blocks": 4},
        {"batch_size": 32, "ema": 0.99},
    ),
    "mnist": Defaults("Linf-0.3"),
    "fashion-mnist": Defaults("Linf-0.1"),
    "svhn": Defaults(settings={"shift": 4}),
    "cifar10": Defaults(settings=_PHOTOGRAPHS),
    "cifar10-jpeg": Defaults(settings=_PHOTOGRAPHS),
    "cifar100": Defaults(settings=_PHOTOGRAPHS),
    "imagenet": Defaults("Linf-4/255", settings={"flip": True}),
}


def defaults_for(dataset: str) -> Defaults:
    """The defaults of a data set by name; general ones for any other."""
    return _DEFAULTS.get(dataset, Defaults())
