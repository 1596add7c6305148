"""What a recipe is: a loss, its parameters, and what it needs."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict, Field
from torch import Tensor, nn

from robench.defenses.inner_maximisers import Objective, ascend, cross_entropy_of, uniform_start
from robench.defenses.training_data import Batch, TrainingData
from robench.errors import ModelError
from robench.probes import eval_mode
from robench.records import ForwardSpec
from robench.records.base import Frozen
from robench.threat_models import ThreatModel


@dataclass(frozen=True)
class Paper:
    """Where a recipe comes from."""

    title: str
    """With its authors."""
    link: str
    venue: str
    year: int


@dataclass(frozen=True)
class Context:
    """What a loss may use besides the batch: the network, in train mode; what it is to withstand;
    all training samples, to draw others from; and a fixed teacher, in evaluation mode, where the
    recipe has one."""

    network: nn.Module
    threat_model: ThreatModel
    num_classes: int
    data: TrainingData
    teacher: nn.Module | None = None


class Recipe(Frozen, ABC):
    """A training loss with its parameters.

    A subclass has a ``name`` and declares its parameters as fields with the paper's defaults.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    name: ClassVar[str]
    paper: ClassVar[Paper | None] = None
    selection: ClassVar[Literal["robust_acc", "clean_acc"]] = "robust_acc"
    """The validation figure that chooses the checkpoint."""
    needs_teacher: ClassVar[bool] = False
    notes: ClassVar[str | None] = None
    """What a reader of the card must know before trusting the number."""

    @abstractmethod
    def terms(self, context: Context, batch: Batch) -> dict[str, Tensor]:
        """The loss's weighted terms, scalars that sum to the loss."""

    def check(self, network: nn.Module, inputs: Tensor, num_classes: int) -> None:
        """Raise if ``network`` or the data lack what the loss needs.

        Seen on a few ``inputs``, float32 (N, C, H, W) in [0, 1].

        Raises:
            ModelError: the architecture lacks something.
            TrainingError: the data does.
        """

    def forward_spec(self, network: nn.Module, inputs: Tensor) -> ForwardSpec:
        """How the finished network's card says to call it, seen on a few ``inputs``."""
        return ForwardSpec()


class AdversarialRecipe(Recipe, ABC):
    """A recipe with an inner maximiser; the radius is the threat model's.

    Step sizes are shares of ε, so that one default serves every threat model.
    """

    attack_steps: int = Field(10, ge=1)
    """Steps of the inner attack."""
    attack_step_size: float = Field(0.25, gt=0)
    """Step size as a share of ε; 0.25 is the usual 2/255 at ε 8/255."""

    def maximise(
        self, context: Context, objective: Objective, inputs: Tensor, start: Tensor
    ) -> Tensor:
        """The inner attack from ``start``, the network in evaluation mode.

        In evaluation mode, because attacking a network must not move its batch statistics.
        Arguments and result are those of :func:`robench.defenses.inner_maximisers.ascend`.
        """
        with eval_mode(context.network):
            return ascend(
                objective,
                inputs,
                start,
                context.threat_model,
                steps=self.attack_steps,
                step_size=self.attack_step_size,
            )

    def pgd(
        self, context: Context, inputs: Tensor, labels: Tensor, keys: Tensor, *, sign: int = 1
    ) -> Tensor:
        """:meth:`maximise` on the cross-entropy with ``labels``, from a random point of the ball.

        Away from the labels, or towards them with ``sign`` −1.
        """
        return self.maximise(
            context,
            cross_entropy_of(context.network, labels, sign),
            inputs,
            uniform_start(inputs, context.threat_model, keys),
        )


def features_of(network: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Last feature map (N, C, h, w), pooled features (N, D) and logits (N, num_classes).

    Raises:
        ModelError: the architecture does not offer its features.
    """
    forward_features = getattr(network, "forward_features", None)
    forward_head = getattr(network, "forward_head", None)
    if not (callable(forward_features) and callable(forward_head)):
        raise ModelError(
            f"{type(network).__name__} does not offer its features",
            hint="Use an architecture with forward_features and forward_head",
        )
    maps = forward_features(inputs)
    if not (isinstance(maps, Tensor) and maps.ndim == 4):
        raise ModelError(
            f"{type(network).__name__} has no feature map (N, C, h, w)",
            hint="Use a convolutional architecture",
        )
    return maps, forward_head(maps, pre_logits=True), forward_head(maps)
