"""What a stand-in is: something that is searched in a model's place; verdicts stay the model's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from robench.acceleration.search_models import SearchModel
from robench.models.wrapper import RobenchModel
from robench.threat_models import ThreatModel


@dataclass(frozen=True)
class Setting:
    """What a stand-in is built from."""

    model: RobenchModel
    """The model under attack, on its device"""
    inputs: Tensor
    """float32 (N, C, H, W) in [0, 1], correctly classified samples of the evaluation, on the device:
    which ones and in which order depends on the samples and the seed alone"""
    labels: Tensor
    """int64 (N,)"""
    threat_model: ThreatModel
    seed: int
    """Of the evaluation"""
    batch_size: int
    """What fits into a pass; it may change how long building takes, never what comes of it"""


class StandIn(ABC):
    """Builds what is searched in a model's place.

    The class is called with no argument, or with the text after the colon of ``name:argument``.
    """

    exact: bool
    """Whether its logits are the model's own, and only gradients differ: finds are then judged as
    usual, otherwise each step is."""

    @abstractmethod
    def build(self, setting: Setting) -> SearchModel:
        """What is searched; its description says in the record what was done.

        It is a function of the setting without its batch size, and its logits and gradients at a
        point are a function of that point.

        Raises:
            AttackError: the model cannot have it, or needs none; the stage is left out with that
                reason.
        """

    def identity(self, model: RobenchModel) -> str | None:
        """What decides its passes beside robench, ``model`` and the data, such as the fingerprint of
        another model; None: nothing."""
        return None
