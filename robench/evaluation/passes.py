"""Passes through the model: counted for each slot, split when memory is short, never lost.

The engine hands this to attacks as their query. A model that raises is asked again with fewer
inputs until the guilty ones are alone; those come back as NaN with the message kept, so that the
engine can mark them errored and go on with the others.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robench.acceleration.search_models import SearchModel
from robench.attacks.base import Gradient
from robench.attacks.losses import Loss
from robench.devices import free_memory, is_out_of_memory

__all__ = ["Passes"]


class Passes:
    """Counts and guards the passes of the slots that are active now.

    Args:
        model: what the search runs on.
        num_classes: K, the width of the logits.
        batch_size: inputs in one pass at most; halved when memory runs out.
    """

    def __init__(self, model: SearchModel, num_classes: int, batch_size: int) -> None:
        self.model = model
        self.num_classes = num_classes
        self.batch_size = batch_size
        self.halvings = 0
        self.watch_gradients = False
        self.zero_gradients = 0
        self.nonfinite_gradients = 0
        self.reset(0, torch.device("cpu"))

    def reset(self, slots: int, device: torch.device) -> None:
        """Start counting anew for ``slots`` slots."""
        self.forwards = torch.zeros(slots, dtype=torch.int64, device=device)
        self.backwards = torch.zeros(slots, dtype=torch.int64, device=device)
        self.failures: dict[int, str] = {}

    def logits(self, points: Tensor, rows: Tensor | None = None) -> Tensor:
        """One forward pass: (B, C, H, W) → float32 (B, K); NaN where the model failed."""
        self._count(self.forwards, rows, 1)
        (logits,) = self._guarded(
            points,
            rows,
            lambda part, _: (self.model.logits(part),),
            lambda part: (self._no_logits(part),),
        )
        self._note_nonfinite(logits, rows)
        return logits

    def gradient(self, points: Tensor, loss: Loss, rows: Tensor | None = None) -> Gradient:
        """One forward and one backward pass; non-finite gradients come back as zero, counted."""
        self._count(self.forwards, rows, 1)
        self._count(self.backwards, rows, 1)

        def call(part: Tensor, here: Tensor) -> tuple[Tensor, ...]:
            return self.model.gradient(part, loss if len(here) == len(points) else loss.at(here))

        def blank(part: Tensor) -> tuple[Tensor, ...]:
            none = self._no_logits(part)
            return none, none[:, 0], torch.zeros_like(part)

        logits, losses, gradient = self._guarded(points, rows, call, blank)
        self._note_nonfinite(logits, rows)
        finite = gradient.isfinite()
        if not bool(finite.all()):
            self.nonfinite_gradients += int((~finite).flatten(1).any(dim=1).sum())
            gradient = torch.where(finite, gradient, 0.0)
        if self.watch_gradients:
            self.zero_gradients += int((gradient.flatten(1) == 0).all(dim=1).sum())
        return Gradient(logits, losses, gradient)

    def jacobian(self, points: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One forward and K backward passes."""
        self._count(self.forwards, rows, 1)
        self._count(self.backwards, rows, self.num_classes)
        logits, slopes = self._guarded(
            points,
            rows,
            lambda part, _: self.model.jacobian(part),
            lambda part: (
                self._no_logits(part),
                part[:, None].repeat(1, self.num_classes, 1, 1, 1),
            ),
        )
        self._note_nonfinite(logits, rows)
        return logits, torch.where(slopes.isfinite(), slopes, 0.0)

    def _no_logits(self, part: Tensor) -> Tensor:
        return part.new_full((len(part), self.num_classes), torch.nan)

    def _count(self, counter: Tensor, rows: Tensor | None, passes: int) -> None:
        if rows is None:
            counter += passes
        else:
            counter.index_add_(0, rows, torch.full_like(rows, passes))

    def _note_nonfinite(self, logits: Tensor, rows: Tensor | None) -> None:
        finite = logits.isfinite()
        if bool(finite.all()):
            return
        for position in (~finite.all(dim=1)).nonzero().squeeze(1).tolist():
            slot = position if rows is None else int(rows[position])
            self.failures.setdefault(slot, "the model returned non-finite logits")

    def _guarded(
        self,
        points: Tensor,
        rows: Tensor | None,
        call: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
        blank: Callable[[Tensor], tuple[Tensor, ...]],
    ) -> tuple[Tensor, ...]:
        if len(points) == 0:  # many models refuse an empty batch
            return blank(points)
        everything = torch.arange(len(points), device=points.device)
        done: list[tuple[Tensor, ...]] = []
        pending = list(torch.split(everything, self.batch_size))
        while pending:
            here = pending.pop(0)
            part = points if len(here) == len(points) else points[here]
            try:
                done.append(call(part, here))
            except Exception as error:  # whatever a model may raise, it concerns only its inputs
                if len(here) == 1:
                    slot = int(here[0]) if rows is None else int(rows[here[0]])
                    first_line = (str(error).strip().splitlines() or [""])[0]
                    self.failures[slot] = f"{type(error).__name__}: {first_line}"
                    done.append(blank(part))
                    continue
                half = (len(here) + 1) // 2
                if is_out_of_memory(error):
                    self.halvings += 1
                    self.batch_size = min(self.batch_size, half)
                    free_memory()
                pending[:0] = torch.split(here, half)
        if len(done) == 1:
            return done[0]
        return tuple(torch.cat(parts) for parts in zip(*done, strict=True))
