"""The reference implementation of AutoAttack, as users run it (package ``pyautoattack``)."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from robench.errors import AttackError, MissingDependencyError
from robench.threat_models import ThreatModel

_VERSIONS = ("standard", "plus", "rand")


class PyAutoAttack:
    """The yardstick: ``run_standard_evaluation`` of pyautoattack.

    Args:
        threat_model: the ball.
        foreign_name: AutoAttack's version, ``standard``, ``plus`` or ``rand``.
        batch_size: the reference's result depends on it; 250 is its default.

    Raises:
        AttackError: no such version.
    """

    def __init__(
        self,
        threat_model: ThreatModel,
        *,
        name: str = "pyautoattack",
        foreign_name: str = "standard",
        batch_size: int = 250,
    ) -> None:
        if foreign_name not in _VERSIONS:
            raise AttackError(
                f"pyautoattack has no version {foreign_name!r}",
                hint=f"Use one of {', '.join(_VERSIONS)}",
            )
        self.name = name
        self.threat_model = threat_model
        self.version = foreign_name
        self.batch_size = batch_size

    def propose(self, model: nn.Module, inputs: Tensor, labels: Tensor, seed: int) -> Tensor:
        """Run the reference on correctly classified inputs (N, C, H, W) in [0, 1].

        Raises:
            MissingDependencyError: the package is not installed.
            AttackError: fewer than four classes.
        """
        try:  # an optional code path; the package is heavy
            from pyautoattack import AutoAttack
        except ImportError as error:
            raise MissingDependencyError(
                "pyautoattack is not installed", hint="pip install pyautoattack"
            ) from error
        logging.getLogger("auto-attack").setLevel(logging.WARNING)
        reference = AutoAttack(
            model,
            norm=self.threat_model.norm,
            eps=self.threat_model.radius,
            seed=seed,
            device=inputs.device,
            version=self.version,
        )
        with torch.no_grad():
            limit_targets(reference, model(inputs[:1]).shape[1])
        adv_inputs: Tensor
        adv_inputs, _ = reference.run_standard_evaluation(
            inputs, labels, batch_size=self.batch_size
        )
        return adv_inputs.detach()


def limit_targets(reference: Any, num_classes: int) -> None:
    """Let an ``AutoAttack`` aim at no more classes than there are wrong ones.

    It aims at nine whatever the model, and fails on an index where there are fewer.

    Raises:
        AttackError: fewer than four classes, for which its targeted loss is not defined.
    """
    if num_classes < 4:
        raise AttackError(
            f"pyautoattack's targeted DLR loss needs four classes, the model has {num_classes}",
            hint="Use the suite aa-standard, which runs the attacks that are defined",
        )
    for attack in (reference.apgd_targeted, reference.fab):
        attack.n_target_classes = min(attack.n_target_classes, num_classes - 1)
