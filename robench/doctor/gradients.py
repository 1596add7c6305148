"""Whether gradients can guide a search: there, finite, not lost, and those of the function.

A gradient that is zero, or that is not the slope of the function, makes a model look robust to
every attack that trusts it (Athalye, Carlini & Wagner, "Obfuscated gradients", ICML 2018).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from robench.attacks.losses import LabelLoss, cross_entropy, margin, margin_loss
from robench.doctor.subject import Finding, Subject
from robench.probes import pulled_back

_DIRECTIONS = 2
"""Random directions besides the gradient's own."""
_STEPS = (3e-3, 3e-2, 3e-4)
"""Largest change of a pixel on either side; the likeliest first, as one that fits is enough. A
kink within a long step and rounding in a short one both look like a wrong slope; no usual network
has both at all of them."""
_MISMATCH = 0.3
"""Share of the slopes by which gradient and differences may be apart: 0 equal, 1 unrelated."""
_LOST = 1e-12
"""A cross-entropy's gradient is lost below this, in every pixel, in float32."""
_FEW = 0.1
"""Share of samples without a usable gradient that a search can live with."""
_SLOPES = 8


def gradients(subject: Subject) -> Iterator[Finding]:
    """Gradients with respect to the inputs, at points inside the box."""
    # Away from the faces of the box, where clamping in forward rightly has no slope.
    inner = Subject(subject.model, 0.05 + 0.9 * subject.inputs, subject.labels)
    slopes = loss_gradient(inner, margin_loss)
    if slopes is None:
        yield Finding(
            name="no_gradients",
            severity="severe",
            evidence="the outputs do not depend on the inputs for autograd: detach(), "
            "no_grad(), NumPy or an integer type lies between",
            mend="Keep forward differentiable, or attack it with a differentiable stand-in",
        )
        return
    losses = loss_gradient(inner, cross_entropy)
    losses = slopes if losses is None else losses
    n = len(slopes)
    bad = int((~(slopes + losses).flatten(1).isfinite().all(dim=1)).sum())
    if bad:
        yield Finding(
            name="nan_gradients",
            severity="severe",
            evidence=f"gradients of {bad} of {n} samples hold NaN or infinity",
            mend="Look for square roots, norms and logarithms at 0, and for 0 · inf in torch.where",
            count=bad,
        )
        return
    yield from _zero(slopes, losses)
    yield from _mismatch(inner.at(slice(_SLOPES)), slopes[:_SLOPES])


def loss_gradient(subject: Subject, loss: LabelLoss) -> Tensor | None:
    """Of a loss, (N, C, H, W); None where autograd finds no way from outputs to inputs."""
    points = subject.inputs.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = subject.call(points)
    if not logits.requires_grad:
        return None
    _, outer = loss(logits.detach(), subject.labels, subject.labels)
    return pulled_back(outer, logits, points)


def _zero(slopes: Tensor, losses: Tensor) -> Iterator[Finding]:
    n = len(slopes)
    zero = slopes.flatten(1).abs().amax(dim=1) == 0
    largest = losses.flatten(1).abs().amax(dim=1)
    zeros, count = int(zero.sum()), int(((largest < _LOST) & ~zero).sum())
    if zeros > _FEW * n:
        yield Finding(
            name="flat_margin",
            severity="severe" if zeros > n / 2 else "warning",
            evidence=f"the gradient of the margin is zero everywhere for {zeros} of {n} samples",
            mend="Rounding, thresholds and dead activations have no slope: attack with "
            "square, which needs none, or with a differentiable stand-in",
            count=zeros,
        )
    elif count > _FEW * n:
        yield Finding(
            name="vanishing_gradients",
            severity="warning",
            evidence=f"the gradient of the cross-entropy is below {_LOST:.0e} in every pixel "
            f"for {count} of {n} samples (median {float(largest.median()):.1g})",
            mend="The logits' scale loses it in float32: divide or multiply them by a "
            "constant, which changes no prediction, and trust attacks on differences of "
            "logits (apgd-dlr, cw) more than those on the cross-entropy",
            count=count,
        )


def _mismatch(subject: Subject, slopes: Tensor) -> Iterator[Finding]:
    """Whether the margin's gradient disagrees with central differences of the margin itself."""
    directions = [slopes.sign()]
    generator = torch.Generator().manual_seed(0)
    for _ in range(_DIRECTIONS):
        noise = torch.randn(slopes.shape, generator=generator)
        directions.append(noise.sign().to(slopes))
    share = torch.full((len(slopes),), torch.inf, dtype=torch.float64)
    for step in _STEPS:
        # Sums in double precision, which not every device has.
        apart = torch.zeros(len(slopes), dtype=torch.float64)
        whole = torch.zeros_like(apart)
        for direction in directions:
            predicted = (slopes * direction).cpu().double().flatten(1).sum(dim=1)
            ahead, behind = (
                -margin(subject.forward(subject.inputs + side * step * direction), subject.labels)
                for side in (1, -1)
            )
            seen = (ahead - behind).cpu().double() / (2 * step)
            apart += (seen - predicted).abs()
            whole += seen.abs() + predicted.abs()
        share = torch.minimum(share, (apart / whole).nan_to_num(nan=0.0))
        median = float(share.median())
        if median <= _MISMATCH:
            return
    wrong = int((share > _MISMATCH).sum())
    yield Finding(
        name="gradient_mismatch",
        severity="severe",
        evidence=f"for {wrong} of {len(share)} samples the gradient is not the slope that "
        f"finite differences see (apart by {median:.0%} of their size, at best, over steps "
        f"{', '.join(f'{step:g}' for step in _STEPS)})",
        mend="Look for custom backward functions, straight-through estimators, detach() and "
        "hooks on gradients; square, which needs no gradient, tells how much they hide",
        count=wrong,
    )
