"""How many steps and passes attacks are going to make, if every sample survives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from robench.attacks import build_attack
from robench.attacks.base import Attack
from robench.attacks.trials import Trials
from robench.errors import AttackError
from robench.models.wrapper import RobenchModel
from robench.records import AttackSpec
from robench.threat_models import ThreatModel


def steps_a_sample(attack: Attack[Any] | Trials, num_classes: int) -> int:
    """Steps of all searches of a sample that survives; 0 where the attack will be skipped."""
    if isinstance(attack, Trials):
        return len(attack.names)
    try:
        return attack.searches(num_classes) * attack.most_steps()
    except AttackError:  # not defined for so few classes
        return 0


def planned_passes(
    planned: Sequence[AttackSpec], threat_model: ThreatModel, model: RobenchModel, count: int
) -> int:
    """Search steps for ``count`` samples that survive everything."""
    passes = 0
    for spec in planned:
        for index, stage in enumerate(spec.for_outputs(model.outputs)):
            attack = build_attack(stage, threat_model)
            if not isinstance(attack, Attack):
                continue
            samples = count
            if spec.audit is not None and index >= spec.audit.first_stage:
                samples = spec.audit.sample_size(count)
            passes += samples * steps_a_sample(attack, model.num_classes)
    return passes
