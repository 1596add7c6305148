"""Losses on logits, with their gradients in closed form.

An attack maximises these. Each takes float32 logits (N, K) and returns the loss (N,) and its
gradient with respect to the logits (N, K). Working the gradient out by hand keeps autograd to
the network itself, and keeps losses in float32 whatever precision the network runs in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robench.errors import AttackError
from robench.registry import Registry

LabelLoss = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(logits (N, K), labels (N,), targets (N,)) → loss (N,) and its gradient (N, K)."""

_TINY = 1e-12  # the reference's guard against division by zero


@dataclass(frozen=True)
class Loss:
    """A loss bound to the labels and targets of some slots: logits (B, K) → (B,), (B, K)."""

    function: LabelLoss
    labels: Tensor
    targets: Tensor
    towards: bool = False
    """The labels are classes to reach: what the function says of leaving them is turned round, and
    what it has in the targets' place is the strongest other class of the moment"""

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (B,) and its gradient (B, K) at logits (B, K)."""
        if not self.towards:
            return self.function(logits, self.labels, self.targets)
        value, gradient = self.function(logits, self.labels, best_other(logits, self.labels)[1])
        return -value, -gradient

    def at(self, rows: Tensor | slice) -> Loss:
        """The same loss for the slots in ``rows``, int64 (B′,) or a range."""
        return replace(self, labels=self.labels[rows], targets=self.targets[rows])


def _pick(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)


def best_other(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit beside the label's, and its class: (N, K), (N,) → (N,), int64 (N,)."""
    return logits.scatter(1, labels[:, None], -torch.inf).max(dim=1)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Logit of the label minus the largest other: (N, K), (N,) → (N,); negative: misclassified."""
    return _pick(logits, labels) - best_other(logits, labels)[0]


def cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """−log softmax(z)_y; gradient softmax(z) − e_y. ``targets`` is not used."""
    log_probs = logits.log_softmax(dim=1)
    gradient = log_probs.exp()
    gradient.scatter_add_(1, labels[:, None], gradient.new_full((len(labels), 1), -1.0))
    return -_pick(log_probs, labels), gradient


def lowered_label(logits: Tensor, labels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """−p_y (N,), and the direction of its gradient, and of cross-entropy's, (N, K): q − e_y.

    q is the softmax over the wrong classes alone, so that no gap between the logits makes it
    vanish: the gradients themselves are p_y (1 − p_y) and 1 − p_y times as long. ``targets`` is not
    used.
    """
    q = logits.scatter(1, labels[:, None], -torch.inf).softmax(dim=1)
    minus_one = -torch.ones_like(q[:, :1])
    return -_pick(logits.softmax(dim=1), labels), q.scatter(1, labels[:, None], minus_one)


def margin_loss(logits: Tensor, labels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """max_{j≠y} z_j − z_y, the loss of Carlini & Wagner (2017). ``targets`` is not used."""
    other, index = best_other(logits, labels)
    return other - _pick(logits, labels), _difference_gradient(logits, index, labels)


def logit_difference(logits: Tensor, labels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """z_t − z_y: positive where the target beats the label."""
    value = _pick(logits, targets) - _pick(logits, labels)
    return value, _difference_gradient(logits, targets, labels)


def _difference_gradient(logits: Tensor, plus: Tensor, minus: Tensor) -> Tensor:
    gradient = torch.zeros_like(logits)
    ones = logits.new_ones((len(plus), 1))
    return gradient.scatter_add_(1, plus[:, None], ones).scatter_add_(1, minus[:, None], -ones)


def difference_of_logits_ratio(
    logits: Tensor, labels: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """−(z_y − max_{j≠y} z_j) / (z_(1) − z_(3)), Croce & Hein, ICML 2020, eq. (6).

    Needs at least three classes. ``targets`` is not used.
    """
    top, order = logits.topk(3, dim=1)
    # With y on top the rival is second, otherwise it is first (also where y is second).
    rival = torch.where(order[:, 0] == labels, order[:, 1], order[:, 0])
    width = top[:, 0] - top[:, 2] + _TINY
    lead = _pick(logits, labels) - _pick(logits, rival)
    value = -lead / width
    gradient = _difference_gradient(logits, rival, labels) / width[:, None]
    ratio = (lead / width.square())[:, None]
    gradient.scatter_add_(1, order[:, :1], ratio).scatter_add_(1, order[:, 2:3], -ratio)
    return value, gradient


def targeted_difference_of_logits_ratio(
    logits: Tensor, labels: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """−(z_y − z_t) / (z_(1) − (z_(3) + z_(4))/2), Croce & Hein, ICML 2020, eq. (7).

    Needs at least four classes.
    """
    top, order = logits.topk(4, dim=1)
    width = top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + _TINY
    lead = _pick(logits, labels) - _pick(logits, targets)
    value = -lead / width
    gradient = _difference_gradient(logits, targets, labels) / width[:, None]
    ratio = (lead / width.square())[:, None]
    weights = torch.cat((ratio, -0.5 * ratio, -0.5 * ratio), dim=1)
    return value, gradient.scatter_add_(1, order[:, (0, 2, 3)], weights)


LOSSES: Registry[LabelLoss] = Registry("loss")
LOSSES.add("ce", cross_entropy, "cross-entropy")
LOSSES.add("margin", margin_loss, "largest other logit minus the label's")
LOSSES.add("dlr", difference_of_logits_ratio, "difference of logits ratio")
LOSSES.add("dlr-targeted", targeted_difference_of_logits_ratio, "targeted DLR")
LOSSES.add("logit-difference", logit_difference, "target's logit minus the label's")

_CLASSES_NEEDED = {"dlr": 3, "dlr-targeted": 4}


def require_classes(loss: str, num_classes: int) -> None:
    """Check that a loss is defined for a model.

    Raises:
        AttackError: the loss needs more classes than the model has.
    """
    needed = _CLASSES_NEEDED.get(loss, 2)
    if num_classes < needed:
        raise AttackError(f"loss {loss!r} needs {needed} classes, the model has {num_classes}")
