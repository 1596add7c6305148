"""Where adversarial examples lie among the features: alignment, exclusion, separation.

All use the cosine distance d(a, b) = 1 - a·b / (|a| |b|) of penultimate features, floating point
(N, D) on any device, those of the clean inputs x and those of the adversarial inputs x', and
return one value a sample, (N,). ``labels`` are the true classes, (N,). Malformed features or
labels are a UsageError. Features that are zero or not finite have no direction: a value that needs
them is NaN, and they take no part in other samples' values.

The criteria are those of Zhou et al., arXiv 2310.03358 (ANCRA).
"""

import torch
from torch import Tensor

from robench.errors import UsageError
from robench.probes import at_least_float32

_CHUNK_ELEMENTS = 2**22
"""Distances held at once: with masks and places some 100 MiB."""

_STEPS = 2**21
"""Steps between the distances 0 and 2. Distances closer than about 1e-6 tie: below it, single
precision knows no order."""


def alignment(features: Tensor, adv_features: Tensor) -> Tensor:
    """d(x, x'): cosine distance between a sample's features and its adversarial example's.

    Returns:
        (N,) in [0, 2]: 0 aligned, 1 orthogonal; lower is better.

    >>> alignment(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    tensor([0., 1.])
    """
    clean, adv = _directions(features, adv_features)
    return (1 - (clean * adv).sum(dim=1)).clamp(0, 2)


def exclusion(features: Tensor, adv_features: Tensor, labels: Tensor) -> Tensor:
    """Mean of d(x, x'_j) over the adversarial examples x'_j of all other classes.

    The mean over pairs is a product with the mean direction of the other classes, so that no
    pair is ever formed.

    Returns:
        (N,) in [0, 2]; larger is better. NaN where there is no example of another class. A value
        depends on the whole set: give all samples at once, not batch by batch.

    >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> exclusion(features, features, torch.tensor([0, 1]))
    tensor([1., 1.])
    """
    clean, adv = _directions(features, adv_features)
    classes, count = _classes(labels, adv)
    usable = ~adv.isnan().any(dim=1)
    kept = torch.where(usable[:, None], adv, 0)
    # A product rather than a scatter: its order of summation is the same on every run.
    members = torch.arange(count, device=classes.device)[:, None] == classes[None, :]
    sums = members.to(kept.dtype) @ kept
    sizes = torch.bincount(classes[usable], minlength=count)
    others = (sums.sum(dim=0) - sums)[classes]
    pairs = (sizes.sum() - sizes)[classes]
    distances = (1 - (clean * others).sum(dim=1) / pairs).clamp(0, 2)
    return distances.masked_fill(pairs == 0, torch.nan)


def separation(features: Tensor, adv_features: Tensor, labels: Tensor) -> Tensor:
    """Each sample's share in the AUC P(d(x, own x') < d(x, x' of another class)).

    A sample's value is the share of all pairs (i, j) of different classes whose distance
    d(x_i, x'_j) is larger than the sample's own d(x, x'); ties count half. The mean over samples
    is the area under the ROC curve by which the distance tells own adversarial examples from
    foreign ones: exactly the Mann-Whitney statistic over all pairs.

    Distances are formed in blocks of some 2²² and counted by their size, to about 1e-6, so that
    memory grows with N only.

    Returns:
        (N,) in [0, 1]: mean 0.5 no better than chance, 1 separated; larger is better. NaN where
        there are not two classes. A value depends on the whole set: give all samples at once.

    >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> separation(features, features, torch.tensor([0, 1]))
    tensor([1., 1.])
    """
    clean, adv = _directions(features, adv_features)
    classes, _ = _classes(labels, adv)
    values = clean.new_full((len(clean),), torch.nan)
    clean_usable, adv_usable = ~clean.isnan().any(dim=1), ~adv.isnan().any(dim=1)
    own_usable = clean_usable & adv_usable
    own = _steps((clean * adv).sum(dim=1)[own_usable])
    found, found_classes = adv[adv_usable], classes[adv_usable]
    counts = torch.zeros(_STEPS + 1, dtype=torch.int64, device=own.device)
    rows = max(1, _CHUNK_ELEMENTS // max(1, len(found)))
    for block in torch.split(clean_usable.nonzero()[:, 0], rows):
        foreign = classes[block][:, None] != found_classes[None, :]
        distances = _steps((clean[block] @ found.T)[foreign])
        counts += torch.bincount(distances, minlength=len(counts))
    pairs = counts.sum()
    larger = pairs - counts.cumsum(0)[own]
    shares = (2 * larger + counts[own]).to(values.dtype) / (2 * pairs)
    values[own_usable] = shares  # 0/0 is NaN: without foreign pairs there is nothing to say
    return values


def _steps(cosines: Tensor) -> Tensor:
    """Distances as whole numbers of steps, 0 to ``_STEPS``."""
    return ((1 - cosines) * (_STEPS / 2)).round().long().clamp(0, _STEPS)


def _directions(features: Tensor, adv_features: Tensor) -> tuple[Tensor, Tensor]:
    """Both divided by their lengths; rows without a direction are NaN."""
    if (
        features.ndim != 2
        or features.shape != adv_features.shape
        or not (features.is_floating_point() and adv_features.is_floating_point())
    ):
        raise UsageError(
            f"features have shape {tuple(features.shape)} and type {features.dtype}, adversarial "
            f"ones {tuple(adv_features.shape)} and {adv_features.dtype}",
            hint="Give floating-point features (N, D) of the same samples",
        )
    common = torch.promote_types(features.dtype, adv_features.dtype)
    return _unit(features.to(common)), _unit(adv_features.to(common))


def _unit(features: Tensor) -> Tensor:
    features = at_least_float32(features)
    # The largest entry first, so that no square overflows or vanishes.
    largest = (
        features.abs().amax(dim=1, keepdim=True) if features.shape[1] else features.sum(1, True)
    )
    scaled = features / largest
    unit: Tensor = scaled / torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    lost = ~features.isfinite().all(dim=1, keepdim=True) | (largest == 0)
    return unit.masked_fill(lost, torch.nan)


def _classes(labels: Tensor, features: Tensor) -> tuple[Tensor, int]:
    """Labels as consecutive numbers beside the features, and how many there are."""
    if labels.shape != features.shape[:1] or labels.is_floating_point():
        raise UsageError(
            f"labels have shape {tuple(labels.shape)} and type {labels.dtype}",
            hint=f"Give one class number for each of the {features.shape[0]} samples",
        )
    known, classes = torch.unique(labels.to(features.device), return_inverse=True)
    return classes, len(known)
