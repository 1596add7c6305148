"""What a cascade has done to each sample so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from robench.evaluation.adversarial_inputs import Inputs
from robench.evaluation.samples import Found
from robench.records import AuditResult, Flag, StageResult

__all__ = ["Attacked"]


@dataclass
class Attacked:
    """What a cascade did to each sample. Tensors are on the CPU, the sample is the first axis."""

    adv_inputs: Inputs
    stage: Tensor
    """int64 (n,): the stage that broke the sample, −1: none"""
    prediction: Tensor
    """int64 (n,): the verdict on ``adv_inputs``; −1 where no stage has an input to show, and
    ``adv_inputs`` holds nothing"""
    margin: Tensor
    """float32 (n,): the label's margin by that verdict, NaN where there is none"""
    size: Tensor
    """float32 (n,): the perturbation's norm, NaN where there is none"""
    closest_margin: Tensor
    found_size: Tensor
    forwards: Tensor
    backwards: Tensor
    rank_margins: dict[int, Tensor] = field(default_factory=dict)
    """(n, ranks) by stage: how close each search came, +inf where it did not run to its end"""
    errors: dict[int, str] = field(default_factory=dict)
    stage_names: tuple[str, ...] = ()
    stages: list[StageResult] = field(default_factory=list)
    flags: list[Flag] = field(default_factory=list)
    audit: AuditResult | None = None
    audited: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """int64: rows that the audit drew"""
    survivors_before_audit: int = -1
    """−1: the audit has not begun"""
    flags_before_audit: int = 0

    @classmethod
    def nothing_yet(cls, adv_inputs: Inputs) -> Attacked:
        """Before the first stage, with room for an adversarial input of each sample."""
        count = len(adv_inputs)
        zeros = torch.zeros(count, dtype=torch.int64)
        return cls(
            adv_inputs=adv_inputs,
            stage=zeros - 1,
            prediction=zeros - 1,
            margin=torch.full((count,), torch.nan),
            size=torch.full((count,), torch.nan),
            closest_margin=torch.full((count,), torch.inf),
            found_size=torch.full((count,), torch.nan),
            forwards=zeros.clone(),
            backwards=zeros.clone(),
        )

    def survivors(self) -> Tensor:
        """Rows that are neither broken nor errored, int64."""
        alive = self.stage < 0
        if self.errors:
            alive[list(self.errors)] = False
        return alive.nonzero().squeeze(1)

    @property
    def shown(self) -> Tensor:
        """bool (n,): samples with an adversarial input; the others are undefined, not unchanged."""
        shown = self.prediction >= 0
        if self.errors:
            shown[list(self.errors)] = False
        return shown

    def merge(self, rows: Tensor, found: Found, stage: int) -> None:
        """Take over what a stage found for ``rows``."""
        broken = found.broken.cpu()
        margins = found.closest_margin.cpu()
        better = broken | (margins < self.closest_margin[rows])
        self.adv_inputs[rows[better]] = found.adv_inputs.cpu()[better]
        self.prediction[rows[better]] = found.prediction.cpu()[better]
        self.margin[rows[better]] = found.margin.cpu()[better]
        self.size[rows[better]] = found.size.cpu()[better]
        self.closest_margin[rows] = torch.minimum(margins, self.closest_margin[rows])
        self.stage[rows[broken]] = stage
        sizes = found.found_size.cpu()
        self.found_size[rows] = torch.where(sizes.isnan(), self.found_size[rows], sizes)
        self.forwards[rows] += found.forwards.cpu()
        self.backwards[rows] += found.backwards.cpu()
        ranks = found.rank_margins.cpu()
        if stage not in self.rank_margins:
            self.rank_margins[stage] = ranks.new_full((len(self.stage), ranks.shape[1]), torch.inf)
        self.rank_margins[stage][rows] = ranks
        for index, message in found.errors.items():
            self.errors[int(rows[index])] = message

    def content(self) -> dict[str, Any]:
        """Plain data and tensors for a snapshot; the tensors are not copied."""
        plain = {
            name: value
            for name, value in vars(self).items()
            if isinstance(value, (Tensor, int)) or name in ("errors", "rank_margins")
        }
        return {
            "plain": plain,
            "stages": [stage.model_dump(mode="json") for stage in self.stages],
            "flags": [flag.model_dump(mode="json") for flag in self.flags],
        }

    def restore(self, content: dict[str, Any]) -> None:
        """Take over what :meth:`content` gave."""
        for name, value in content["plain"].items():
            setattr(self, name, value)
        self.stages = [StageResult.model_validate(stage) for stage in content["stages"]]
        self.flags = [Flag.model_validate(flag) for flag in content["flags"]]
