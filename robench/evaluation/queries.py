"""Queries: an attack's passes through the model, counted for each slot, never lost.

A model that raises is asked again with fewer inputs until the guilty ones are alone; those come
back as NaN with the message kept, so that the search can mark them errored and go on with the
others.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from robench.acceleration.search_models import SearchModel
from robench.attacks.base import Gradient
from robench.attacks.losses import Loss, cross_entropy
from robench.devices import Parts, filled
from robench.errors import first_line
from robench.geometry import norm_of
from robench.threat_models import Norm


class Queries:
    """Counts and guards the passes of the slots that are active now.

    The logits are K = ``num_classes`` wide; a pass has ``batch_size`` inputs at most, fewer once memory
    has run out.

    Attributes:
        forwards, backwards: int64 (B,), passes by slot since the last reset.
        failures: message by slot, where the model failed.
        nonfinite: bool (B,), slots that met a gradient with NaN or infinity; None: none did.
    """

    def __init__(self, model: SearchModel, num_classes: int, batch_size: int) -> None:
        self.model = model
        self.num_classes = num_classes
        self.parts: Parts[tuple[Tensor, ...]] = Parts(batch_size)
        self._watches_gradients = False
        self.reset(0, torch.device("cpu"))

    def reset(self, slots: int, device: torch.device) -> None:
        """Start counting anew for ``slots`` slots."""
        self.forwards = torch.zeros(slots, dtype=torch.int64, device=device)
        self.backwards = torch.zeros(slots, dtype=torch.int64, device=device)
        self.failures: dict[int, str] = {}
        self.nonfinite: Tensor | None = None
        self._first: Tensor | None = None
        # Of gradient passes: how many, their losses and gradients' norms, both summed; (3, B).
        self._watched = torch.zeros(3, slots, device=device) if self._watches_gradients else None

    def watch_gradients(self) -> None:
        """From the next reset on, remember what gradient passes tell."""
        self._watches_gradients = True

    def watched(self) -> tuple[Tensor, Tensor]:
        """Since the last reset: (B,) losses and (B,) L2 norms of the gradients, means over the slot's
        gradient passes, NaN where there was none."""
        assert self._watched is not None
        count, losses, norms = self._watched
        return losses / count, norms / count

    def watch_first_gradients(self, slots: Tensor | None = None) -> None:
        """Until the next reset, notice gradients that are zero everywhere.

        Cross-entropy is left out: its slope vanishes where a model is merely confident, and says
        nothing of the network's own. ``slots``, bool (B,): whose first gradient comes now; None: all.
        """
        self._first = torch.ones_like(self.forwards, dtype=torch.bool) if slots is None else slots

    def zero_first_gradients(self) -> Tensor | None:
        """bool (B,): watched slots whose gradients were all zero; None: none was."""
        if self._first is None:
            return None
        zero = self._first & (self.backwards > 0)
        return zero if bool(zero.any()) else None

    def logits(self, points: Tensor, rows: Tensor | None = None) -> Tensor:
        """One forward pass: (B, C, H, W) → float32 (B, K); NaN where the model failed."""
        rows = self._spend(points, rows, backwards=0)
        (logits,) = self._guarded(points, rows, lambda part, _: (self.model.logits(part),))
        return logits

    def gradient(self, points: Tensor, loss: Loss, rows: Tensor | None = None) -> Gradient:
        """One forward and one backward pass; non-finite gradients come back as zero, noted."""
        rows = self._spend(points, rows, backwards=1)

        def call(part: Tensor, here: slice | Tensor) -> tuple[Tensor, ...]:
            return self.model.gradient(part, loss.at(here))

        logits, losses, gradient = self._guarded(points, rows, call, (), points.shape[1:])
        if loss.function is cross_entropy:
            self._first = None
        gradient = self._finite(gradient, logits, rows)
        if self._watched is not None:
            told = torch.stack((torch.ones_like(losses), losses, norm_of(gradient, "L2")))
            self._watched.index_add_(1, rows, told)
        return Gradient(logits, losses, gradient)

    def jacobian(self, points: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One forward and K backward passes."""
        rows = self._spend(points, rows, backwards=self.num_classes)
        shape = (self.num_classes, *points.shape[1:])
        logits, slopes = self._guarded(
            points, rows, lambda part, _: self.model.jacobian(part), shape
        )
        return logits, self._finite(slopes, logits, rows)

    def steepness(self, points: Tensor, rivals: Tensor, labels: Tensor, norm: Norm) -> Tensor:
        """One forward and M backward passes: (B, M), 0 where the model failed."""
        rows = self._spend(points, None, backwards=rivals.shape[1])
        _, norms = self._guarded(
            points,
            rows,
            lambda part, here: self.model.steepness(part, rivals[here], labels[here], norm),
            rivals.shape[1:],
        )
        return norms

    def _finite(self, gradient: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        """The gradient with zeros for what is not finite; both kinds of blindness are noted."""
        if self._first is not None:
            zero = (gradient.flatten(1) == 0).all(dim=1) & logits.isfinite().all(dim=1)
            self._first = self._first.index_fill(0, rows[~zero], False)
        # One sum is many times faster than a question for each number; large ones may overflow it.
        if bool(gradient.sum().isfinite()) or bool((finite := gradient.isfinite()).all()):
            return gradient
        if self.nonfinite is None:
            self.nonfinite = torch.zeros_like(self.forwards, dtype=torch.bool)
        self.nonfinite[rows[(~finite).flatten(1).any(dim=1)]] = True
        return torch.where(finite, gradient, 0.0)

    def _spend(self, points: Tensor, rows: Tensor | None, backwards: int) -> Tensor:
        """Count a forward and some backward passes, as often as the model makes them; int64 (B,), the
        slots that they are for."""
        forwards = self.model.passes if backwards else self.model.logit_passes
        backwards *= self.model.passes
        if rows is None:
            self.forwards += forwards
            self.backwards += backwards
            return torch.arange(len(points), device=points.device)
        ones = torch.ones_like(rows)
        self.forwards.index_add_(0, rows, ones, alpha=forwards)
        if backwards:
            self.backwards.index_add_(0, rows, ones, alpha=backwards)
        return rows

    def _guarded(
        self,
        points: Tensor,
        rows: Tensor,
        call: Callable[[Tensor, slice | Tensor], tuple[Tensor, ...]],
        *shapes: tuple[int, ...],
    ) -> tuple[Tensor, ...]:
        """``call`` for all points, in parts: logits, and tensors of these shapes for each point.

        Where the model fails, or is not finite, the slot is noted; logits that it did not give are
        NaN, all else is zero.
        """

        def blank(count: int) -> tuple[Tensor, ...]:
            logits = points.new_full((count, self.num_classes), torch.nan)
            return logits, *(points.new_zeros((count, *shape)) for shape in shapes)

        def alone(position: int, error: Exception) -> tuple[Tensor, ...]:
            self.failures[int(rows[position])] = f"{type(error).__name__}: {first_line(error)}"
            return blank(1)

        def asked(part: slice) -> tuple[Tensor, ...]:
            here = filled(part, points.device, self.parts.size)
            columns = call(points[here], here)
            count = part.stop - part.start
            return columns if here is part else tuple(column[:count] for column in columns)

        if len(points) == 0:  # many models refuse an empty batch
            return blank(0)
        done = self.parts.map(len(points), asked, alone)
        columns = done[0] if len(done) == 1 else tuple(map(torch.cat, zip(*done, strict=True)))
        if not bool(columns[0].sum().isfinite()):
            finite = columns[0].isfinite()
            for slot in rows[~finite.all(dim=1)].tolist():
                self.failures.setdefault(slot, "the model returned non-finite logits")
        return columns
