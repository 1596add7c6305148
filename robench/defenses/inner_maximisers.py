"""The inner problem of adversarial training: raise an objective inside the ball.

These maximisers are not the attacks that judge a model. They run a fixed number of steps on a
batch, take any objective, and report nothing.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robench import geometry, seeding
from robench.threat_models import ThreatModel

Objective = Callable[[Tensor], Tensor]
"""adv_inputs (N, C, H, W) → loss of each sample (N,), to be raised."""

_GAUSSIAN_SCALE = 0.001

_START = seeding.tag("inner start")


def uniform_start(inputs: Tensor, threat_model: ThreatModel, keys: Tensor) -> Tensor:
    """A random point of the ball (Madry et al. 2018)."""
    keys = seeding.derive(keys, _START)
    return geometry.random_point(inputs, threat_model.norm, threat_model.radius, keys)


def gaussian_start(inputs: Tensor, keys: Tensor) -> Tensor:
    """Next to the clean input: 0.001·N(0, 1) away, as TRADES starts; not clipped."""
    noise = seeding.normal(seeding.derive(keys, _START), inputs.shape[1:])
    return inputs + _GAUSSIAN_SCALE * noise


def ascend(
    objective: Objective,
    inputs: Tensor,
    start: Tensor,
    threat_model: ThreatModel,
    *,
    steps: int,
    step_size: float,
) -> Tensor:
    """Projected steepest ascent of ``objective``, sample by sample.

    Args:
        inputs: clean inputs (N, C, H, W) in [0, 1], the centre of the ball.
        start: first iterate, same shape.
        step_size: length of each of the ``steps`` as a share of ε.

    Returns:
        The last iterate, detached, in the ball and the box.
    """
    norm, eps = threat_model.norm, threat_model.radius
    adv_inputs = start.detach()
    for _ in range(steps):
        adv_inputs.requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(objective(adv_inputs.clone()).sum(), adv_inputs)
        moved = adv_inputs.detach() + step_size * eps * geometry.steepest(gradient, norm)
        adv_inputs = geometry.project(moved, inputs, norm, eps)
    return adv_inputs.detach()


def cross_entropy_of(network: nn.Module, labels: Tensor, sign: int = 1) -> Objective:
    """The cross-entropy with ``labels``: away from them, or towards them with ``sign`` −1."""
    return lambda points: sign * F.cross_entropy(network(points), labels, reduction="none")


def kl_divergence(clean_logits: Tensor, adv_logits: Tensor) -> Tensor:
    """KL(p_clean ‖ p_adv) of each sample: (N, C), (N, C) → (N,)."""
    log_clean, log_adv = F.log_softmax(clean_logits, dim=1), F.log_softmax(adv_logits, dim=1)
    return F.kl_div(log_adv, log_clean, reduction="none", log_target=True).sum(dim=1)
