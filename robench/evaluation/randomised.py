"""What is different for a model with random outputs: who judges it, and what searches see of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robench.acceleration.model_choice import SearchChoice
from robench.acceleration.search_models import SearchModel, SearchModels
from robench.datasets import Dataset
from robench.evaluation.averaged_model import AveragedModel, averaged
from robench.evaluation.clean_pass import classify
from robench.evaluation.repeated_draws import (
    Draws,
    DrawsAdjudicator,
    VotesOfDraws,
    by_majority,
)
from robench.models.keyed_draws import own_sizes
from robench.models.wrapper import RobenchModel
from robench.records import Flag
from robench.records.draws import DEFAULT_DRAWS, RepeatedDraws, own_of
from robench.statistics import exact
from robench.threat_models import ThreatModel

log = logging.getLogger("robench.evaluation")

HOW_RANDOM = (
    "%s: outputs are random, and nobody says by how many draws they are to be judged; %d are taken "
    "(--draws K, draws=K in Python, or draws = K in its card)"
)
"""What is said of a model without a number of draws"""

_FOUND, _JUDGED = "randomised", "judged_by_draws"
_PROBED = 8


@dataclass(frozen=True)
class Randomised:
    """A model with random outputs."""

    model: RobenchModel
    draws: Draws
    verdict: int
    """Draws of one verdict"""
    asked: bool
    """Whether somebody said how many: then randomness is meant"""
    search: AveragedModel

    @classmethod
    def seen(
        cls,
        flags: Sequence[Flag],
        model: RobenchModel,
        probe: tuple[Tensor, Tensor],
        verdict: int | None,
        seed: int,
    ) -> Randomised | None:
        """What the doctor's ``flags`` say; None: outputs are not random.

        Args:
            flags: of :func:`robench.doctor.examine`.
            model: on its device.
            probe: a few inputs (N, C, H, W) and their labels (N,), there.
            verdict: draws of one verdict as the user has them; None: as the model's card. Where nobody
                says how many, one line says so.
            seed: of all draws.
        """
        if all(flag.name != _FOUND for flag in flags):
            return None
        if (verdict := asked_draws(model, verdict)) is None:
            log.warning(HOW_RANDOM, model.summary.id, DEFAULT_DRAWS)
        inputs, labels = probe
        draws = Draws.of(model, inputs[:_PROBED], seed)
        search = averaged(model, draws, inputs, labels)
        return cls(model, draws, verdict or DEFAULT_DRAWS, verdict is not None, search)

    @property
    def votes(self) -> VotesOfDraws:
        """What is said of clean inputs."""
        return VotesOfDraws(self.model, self.draws, self.verdict)

    def classified(
        self, dataset: Dataset, device: torch.device, batch_size: int
    ) -> tuple[Tensor, dict[int, str]]:
        """Of clean samples what :func:`robench.evaluation.clean_pass.classify` gives: votes as logits."""
        votes, errors, _ = classify(self.votes, self.model, dataset, device, batch_size)
        return by_majority(votes, dataset.labels, self.verdict), errors

    def adjudicator(self, threat_model: ThreatModel, batch_size: int) -> DrawsAdjudicator:
        """Who judges what attacks propose."""
        return DrawsAdjudicator(self.votes, threat_model, batch_size)

    def searched(self, choice: SearchChoice) -> SearchChoice:
        """The choice with means in the place of single draws."""
        return replace(choice, models=SearchModels.all_on(self.search), reason="outputs are random")

    def averaged(self, model: SearchModel) -> AveragedModel:
        """Another output of the network, averaged as the first."""
        return AveragedModel.of(model, self.draws, self.search.count)

    def flags(self, flags: Sequence[Flag]) -> list[Flag]:
        """The doctor's, and how verdicts are made. Randomness that is meant makes no number invalid: it
        is averaged out."""
        told = self.record()
        where = "draws belong to samples" if told.by_sample else "draws depend on the batch, too"
        judged = Flag(
            name=_JUDGED,
            severity="note",
            evidence=f"clean predictions and verdicts are what at least half of {told.verdict} passes say, "
            "of finds by passes of their own, and margins are shares of passes; searches see means of "
            f"{told.search} passes; {where}",
        )
        meant = {"severity": "warning"} if self.asked else {}
        found = [f.model_copy(update=meant) if f.name == _FOUND else f for f in flags]
        return [*found, judged]

    def record(self) -> RepeatedDraws:
        """What the record says."""
        return RepeatedDraws(
            verdict=self.verdict, search=self.search.count, by_sample=self.draws.keyed
        )


def asked_draws(model: RobenchModel, draws: int | None) -> int | None:
    """Of one verdict, if outputs are random: the user's word, or the card's; None: nobody's."""
    return model.draws if draws is None else draws


def error_rates(side: str, margin: float, draws: int, towards: bool = False) -> dict[str, float]:
    """Of a verdict's margin the columns of :data:`robench.records.draws.ERROR_RATES` for the ``clean`` or
    the ``adv`` side: the share of draws that are wrong, or ``towards`` a target that give it."""
    own = own_of(-margin if towards else margin, draws, towards)
    rate = exact(own if towards else draws - own, draws)
    name = f"{side}_error_rate"
    return {name: rate.estimate, f"{name}_low": rate.low, f"{name}_high": rate.high}


def is_judged_by_draws(flags: Sequence[Flag]) -> bool:
    """Whether a record's verdicts are of repeated draws."""
    return any(flag.name == _JUDGED for flag in flags)


def adjudicator_of(
    model: RobenchModel,
    shape: Sequence[int],
    told: RepeatedDraws | None,
    seed: int,
    threat_model: ThreatModel,
    batch_size: int,
) -> DrawsAdjudicator:
    """Who judged a record of such a model, on inputs of a ``shape`` (C, H, W)."""
    keyed = told is None or told.by_sample
    draws = Draws(seed, own_sizes(model, shape), keyed)
    votes = VotesOfDraws(model, draws, DEFAULT_DRAWS if told is None else told.verdict)
    return DrawsAdjudicator(votes, threat_model, batch_size)
