"""The verdict: what an attack proposes is judged here, in float32, by the original model.

An adversarial input counts if it lies in the box [0, 1], within the norm ball (up to the stated
rounding tolerance, :func:`robench.geometry.norm_tolerance`), is finite, and is misclassified; where
the threat model has targets, if it is classified as its target.
Whatever precision or layout the search used has no say in it.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from robench.attacks.goals import Goal
from robench.devices import Parts, filled
from robench.errors import ModelError
from robench.geometry import norm_of, norm_tolerance
from robench.threat_models import ThreatModel


@dataclass
class Verdicts:
    """What was found for each proposal. All tensors are (N,)."""

    broken: Tensor
    """bool: inside the threat model, finite, and misclassified, or classified as the target"""
    fooled: Tensor
    """bool: as ``broken``, inside the ball or out of it"""
    allowed: Tensor
    """bool: inside the threat model and finite"""
    prediction: Tensor
    """int64"""
    margin: Tensor
    """float32: logit of the label minus the largest other; of a target the largest other minus it"""
    size: Tensor
    """float32: the perturbation's norm, [0, 1] pixel units"""
    finite: Tensor
    """bool: the model's outputs are finite; False also where it raised"""

    @property
    def shown(self) -> Tensor:
        """bool (N,): points that say something of the attack: judged, and not the clean input."""
        return self.broken | (self.allowed & self.finite & (self.size > 0))

    def at(self, rows: Tensor) -> Verdicts:
        """The given verdicts, int64 (N′,) or bool (N,)."""
        return Verdicts(*(getattr(self, f.name)[rows] for f in fields(self)))


@dataclass
class Adjudicator:
    """Judges proposals with the original model."""

    model: nn.Module
    """Inputs (N, C, H, W) in [0, 1] → logits (N, K); used as it is, in float32"""
    threat_model: ThreatModel
    batch_size: InitVar[int] = 256
    """Proposals judged at a time"""

    def __post_init__(self, batch_size: int) -> None:
        self.parts: Parts[tuple[int, Any]] = Parts(batch_size)
        self._width: int | None = None

    @torch.no_grad()
    def logits(
        self, points: Tensor, forgiving: bool = False, samples: Tensor | None = None
    ) -> Tensor:
        """Float32 logits (N, K) of the original model for points (N, C, H, W).

        Out of memory halves the batch and goes on. ``forgiving``: NaN for single inputs on which the
        model raises, if K is known. A model that draws by samples is given ``samples``, of the same shape.

        Raises:
            ModelError: the model does not return a tensor (N, K).
            Exception: whatever the model raises.
        """

        def call(part: slice) -> tuple[int, Any]:
            rows = filled(part, points.device, self.parts.size)
            asked, of = points[rows], () if samples is None else (samples[rows],)
            count, out = part.stop - part.start, self.model(asked, *of)
            if isinstance(out, Tensor) and out.dim() == 2:
                self._width = out.shape[1]
                out = out[:count] if len(out) == len(asked) else out
            return count, out

        def unjudged(position: int, error: Exception) -> tuple[int, Any]:
            if self._width is None:
                raise error
            return 1, points.new_full((1, self._width), torch.nan)

        done = self.parts.map(len(points), call, unjudged if forgiving else None)
        for count, out in done:
            if not isinstance(out, Tensor) or out.dim() != 2 or len(out) != count:
                shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
                raise ModelError(
                    f"the model returned {shape} for {count} inputs instead of logits (N, K)",
                    hint="Name the logits' place in the card: forward.output",
                )
        return torch.cat([out.float() for _, out in done])

    def judged(self, points: Tensor, inputs: Tensor, classes: Tensor) -> Tensor:
        """What a verdict on points is read off, float32 (N, K)."""
        return self.logits(points, forgiving=True)

    def judge(self, points: Tensor, inputs: Tensor, classes: Tensor) -> Verdicts:
        """Judge proposals, points (N, C, H, W), for inputs in [0, 1].

        ``classes`` (N,) are their labels, or the targets if the threat model has any.
        """
        goal = Goal.of(self.threat_model)
        logits = self.judged(points, inputs, classes)
        delta = (points - inputs).double()
        size = norm_of(delta, self.threat_model.norm)
        slack = norm_tolerance(self.threat_model.norm, delta.shape[1:].numel())
        flat = points.flatten(1)
        in_box = (flat >= 0).all(dim=1) & (flat <= 1).all(dim=1)
        # A NaN fails every comparison, so it is inside nothing.
        allowed = in_box & (size <= self.threat_model.radius + slack)
        finite = logits.isfinite().all(dim=1)
        prediction = logits.argmax(dim=1)
        fooled = in_box & finite & goal.reached(prediction, classes)
        return Verdicts(
            broken=allowed & fooled,
            fooled=fooled,
            allowed=allowed,
            prediction=prediction,
            margin=goal.margin(logits, classes),
            size=size.float(),
            finite=finite,
        )
