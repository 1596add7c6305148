"""The binarisation test: whether the evaluation's own attack finds what is sure to be there.

Zimmermann et al., "Increasing Confidence in Adversarial Robustness Evaluations", NeurIPS 2022. For
each sample, a linear head on the network's penultimate features is fitted to tell 999 points of the
inner ball, the sample among them, from one point on its border. Put in the place of the network's own
last layer, it makes a classifier of two classes of which an adversarial example is known. An attack
that does not find one is too weak for these features. Where random points are as good, the test says
nothing.

The heads are closed-form: the direction along which the point stands out most from the others
(Fisher's discriminant, with the covariance regularised). They differ by sample and the body does not,
so the attack runs on a batch of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from robench import seeding
from robench.attacks import build_attack
from robench.attacks.base import Attack, Gradient, Slots, slot_keys
from robench.attacks.losses import Loss
from robench.doctor.subject import Subject
from robench.errors import AttackError, ModelError
from robench.geometry import expand, norm_of, project, random_noise, random_point
from robench.probes import pulled_back
from robench.records import AttackSpec, Diagnosis
from robench.representations.features import penultimate_features
from robench.threat_models import Norm, ThreatModel

FIRST_ATTACK = AttackSpec(name="apgd-ce", attack="apgd", params={"loss": "ce", "steps": 100})
"""AutoAttack's first, which begins most suites."""

_INNER = 999
_INNER_SHARE = 0.95
"""Of ε: the ball that the inner points lie in."""
_PASSED = 0.95
"""Share of the samples that the attack has to find something for, as published; one more may be missed,
for of few samples one is a large share."""
_CHANCE = 0.5
"""From this share on that random points find, the test says nothing."""
_NEAR_POINT = 0.5
"""Where the boundary lies between the last inner point and the one outside, seen from the former."""
_SCALE = 10.0
"""The head's logit of the point on the border over that of the inner points' middle."""
_RIDGE = 1.0
"""Share of the features' mean variance that is added to each variance: a head that lives on directions in
which the features hardly vary is hard for any attack."""
_BATCH = 250


@dataclass(frozen=True)
class Heads:
    """Linear heads of two classes, one for each of B samples: the second class is adversarial.

    Attributes:
        weights: (B, D).
        biases: (B,).
    """

    weights: Tensor
    biases: Tensor

    def logits(self, features: Tensor, rows: Tensor) -> Tensor:
        """(M, D) features, each for the head of its row, int64 (M,): logits (M, 2)."""
        lead = torch.einsum("md,md->m", features, self.weights[rows]) + self.biases[rows]
        return torch.stack((-lead / 2, lead / 2), dim=1)


def features_of(subject: Subject, points: Tensor) -> Tensor:
    """The penultimate features of points (M, C, H, W), float32 (M, D), in the caller's gradient mode."""
    model = subject.model
    return penultimate_features(model, points, layer=model.attention.feature_layer)[0].float()


@dataclass(frozen=True)
class HeadQuery:
    """An attack's passes through a network's body and the heads of its slots.

    Attributes:
        subject: the model whose features they are.
        heads: one for each slot.
    """

    subject: Subject
    heads: Heads

    def _rows(self, points: Tensor, rows: Tensor | None) -> Tensor:
        return torch.arange(len(points), device=points.device) if rows is None else rows

    @torch.no_grad()
    def logits(self, points: Tensor, rows: Tensor | None = None) -> Tensor:
        """As :class:`robench.attacks.base.Query`: (M, 2)."""
        return self.heads.logits(features_of(self.subject, points), self._rows(points, rows))

    def gradient(self, points: Tensor, loss: Loss, rows: Tensor | None = None) -> Gradient:
        """As :class:`robench.attacks.base.Query`."""
        with torch.enable_grad():
            leaf = points.detach().clone().requires_grad_()
            logits = self.heads.logits(features_of(self.subject, leaf), self._rows(points, rows))
        losses, slope = loss(logits.detach())
        gradient = pulled_back(slope, logits, leaf) if logits.requires_grad else None
        found = torch.zeros_like(points) if gradient is None else gradient
        return Gradient(logits.detach(), losses, found.nan_to_num(0.0, 0.0, 0.0))

    def jacobian(self, points: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """None of the attacks that this test runs asks for it."""
        raise AttackError("the binarisation test runs attacks that follow one loss")

    def steepness(self, points: Tensor, rivals: Tensor, labels: Tensor, norm: Norm) -> Tensor:
        """None of the attacks that this test runs asks for it."""
        raise AttackError("the binarisation test runs attacks that follow one loss")


@dataclass(frozen=True)
class Separation:
    """What the heads of some samples were fitted to.

    Attributes:
        heads: one for each of the B samples that have one.
        rows: int64 (B,), which samples these are.
        by_chance: bool (B,), whether a random point of the ball is adversarial for the head.
    """

    heads: Heads
    rows: Tensor
    by_chance: Tensor


@torch.no_grad()
def separate(subject: Subject, threat_model: ThreatModel, keys: Tensor) -> Separation:
    """Fit a head for each sample whose border point its features can tell from the inner ones.

    ``keys`` int64 (N,) are what the points are drawn by.
    """
    body = partial(features_of, subject)
    weights, biases, rows, lucky = [], [], [], []
    for row in range(len(keys)):
        centre, key = subject.inputs[row : row + 1], keys[row]
        inner = _around(centre, threat_model, _INNER_SHARE, seeding.derive(key[None], 1))
        inner = torch.cat((centre, inner[1:]))
        border = _border(centre, threat_model, seeding.derive(key[None], 2))
        points = torch.cat((border, inner))
        features = torch.cat([body(part) for part in torch.split(points, _BATCH)]).double()
        head = discriminant(features[1:], features[0])
        if head is None:
            continue
        others = _around(centre, threat_model, 1.0, seeding.derive(key[None], 3))
        weight, bias = (part.float() for part in head)
        seen = torch.cat([body(part) for part in torch.split(others, _BATCH)])
        lucky.append((seen @ weight + bias > 0).any())
        weights.append(weight)
        biases.append(bias)
        rows.append(row)
    if not rows:
        nothing = subject.inputs.new_zeros(0)
        return Separation(Heads(nothing, nothing), subject.labels[:0], nothing.bool())
    heads = Heads(torch.stack(weights), torch.stack(biases))
    places = torch.tensor(rows, device=keys.device)
    return Separation(heads, places, torch.stack(lucky))


def discriminant(inner: Tensor, border: Tensor) -> tuple[Tensor, Tensor] | None:
    """Weight (D,) and bias () that tell a point (D,) from others, float64 (M, D).

    Positive on the point's side, negative for all the others; None where no such head was found.
    """
    middle = inner.mean(dim=0)
    spread = inner - middle
    covariance = spread.T @ spread / len(inner)
    ridge = _RIDGE * covariance.diagonal().mean()
    if not bool(ridge > 0) or not bool(border.isfinite().all()):
        return None
    regular = covariance + ridge * torch.eye(len(middle)).to(covariance)
    weight = torch.linalg.solve(regular, border - middle)
    outside, last = (border - middle) @ weight, (spread @ weight).max()
    if not bool(outside > last):
        return None
    boundary = last + _NEAR_POINT * (outside - last)
    weight = _SCALE * weight / outside
    return weight, -_SCALE * boundary / outside - middle @ weight


def _around(centre: Tensor, threat_model: ThreatModel, share: float, key: Tensor) -> Tensor:
    """Random points of a ball around (1, C, H, W), in the box: (999, C, H, W)."""
    keys = seeding.derive(key.expand(_INNER), torch.arange(_INNER, device=key.device))
    centres = centre.expand(_INNER, *centre.shape[1:])
    return random_point(centres, threat_model.norm, share * threat_model.radius, keys)


def _border(centre: Tensor, threat_model: ThreatModel, key: Tensor) -> Tensor:
    """A corner of the box around (1, C, H, W), or a point of the sphere: (1, C, H, W)."""
    norm, shape = threat_model.norm, tuple(centre.shape[1:])
    drawn = seeding.signs(key, shape) if norm == "Linf" else random_noise(key, shape, norm)
    size = expand(norm_of(drawn, norm), drawn)
    return project(centre + threat_model.radius * drawn / size, centre, norm, threat_model.radius)


def found_by(attack: Attack[Any], subject: Subject, separation: Separation, keys: Tensor) -> Tensor:
    """bool (B,): the samples with a head for which the attack finds the second class."""
    rows = separation.rows
    query = HeadQuery(subject, separation.heads)
    inputs, labels = subject.inputs[rows], torch.zeros_like(rows)
    searches = torch.zeros_like(rows)
    slots = Slots(
        inputs=inputs,
        labels=labels,
        clean_logits=query.logits(inputs),
        keys=slot_keys(keys[rows], attack.name, searches),
        search=searches,
    )
    state = attack.start(query, slots)
    found: Tensor = state.margin <= 0
    for _ in range(attack.most_steps()):
        if bool((found | attack.finished(state)).all()):
            break
        state = attack.step(query, state)
        found = found | (state.margin <= 0)
    return found


def binarisation(
    subject: Subject,
    threat_model: ThreatModel,
    seed: int,
    attack: AttackSpec = FIRST_ATTACK,
) -> Diagnosis:
    """The binarisation test, on correctly classified samples, of one search of an attack.

    Raises:
        RobenchError: the attack cannot be built, or needs more than two classes.
    """

    def says(outcome: Any, evidence: str, **figures: Any) -> Diagnosis:
        return Diagnosis(test="binarisation", outcome=outcome, evidence=evidence, **figures)

    untargeted = replace(threat_model, targets=None)
    built: Any = build_attack(attack, untargeted)
    places = torch.arange(len(subject.labels), device=subject.inputs.device)
    keys = seeding.derive(places, seed, seeding.tag("binarisation"))
    try:
        with torch.no_grad():
            once, again = (features_of(subject, subject.inputs) for _ in range(2))
    except ModelError as error:
        return says("undefined", f"the network has no penultimate features: {error.what}")
    if not torch.allclose(once, again, rtol=1e-3, atol=1e-6):
        return says("undefined", "the penultimate features are random: no head tells points apart")
    separation = separate(subject, untargeted, keys)
    count = len(separation.rows)
    if count < len(keys) / 2:
        return says(
            "undefined",
            f"a linear head on the {once.shape[1]} penultimate features tells a border point "
            f"from {_INNER} inner ones for {count} of {len(keys)} samples only",
        )
    chance = float(separation.by_chance.double().mean())
    found = float(found_by(built, subject, separation, keys).double().mean())
    told = (
        f"{attack.name} finds an adversarial example that is there by construction for {found:.0%} "
        f"of {count} samples, {_INNER} random points for {chance:.0%}"
    )
    if chance >= _CHANCE:
        return says("undefined", f"{told}: too easy to say anything")
    needed = _PASSED - 1 / count
    masked = found < needed
    return says(
        "masked" if masked else "sound",
        told,
        value=found,
        threshold=needed,
        asks_for=("smoothed", "bpda", "distilled", "restarts", "square-more") if masked else (),
        severe=found < _CHANCE,
    )
