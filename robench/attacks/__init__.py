"""Attacks: what they are called, and how an entry of a suite becomes one.

Listing names imports no torch.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from robench.errors import AttackError, UsageError
from robench.records import AttackSpec
from robench.registry import Registry, near_misses
from robench.threat_models import ThreatModel

if TYPE_CHECKING:
    from robench.attacks.base import Attack, BatchAttack

__all__ = ["ADAPTERS", "ATTACKS", "build_attack"]

ATTACKS: Registry[Any] = Registry("attack")
ATTACKS.add("pgd", "robench.attacks.pgd:PGD", "fixed-step gradient ascent; FGSM and CW-Linf too")
ATTACKS.add("apgd", "robench.attacks.apgd:APGD", "Auto-PGD on CE, DLR or targeted DLR")
ATTACKS.add("fab", "robench.attacks.fab:FAB", "fast adaptive boundary, targeted or not")
ATTACKS.add("square", "robench.attacks.square:Square", "random search with forward passes only")
ATTACKS.add(
    "cw-l2",
    "robench.attacks.carlini_wagner:CarliniWagnerL2",
    "Carlini & Wagner's minimum-norm L2 attack",
)

ADAPTERS: Registry[Any] = Registry("attack adapter")
ADAPTERS.add(
    "pyautoattack",
    "robench.attacks.adapters.pyautoattack:PyAutoAttack",
    "the reference AutoAttack, pyautoattack:standard",
)
ADAPTERS.add(
    "art",
    "robench.attacks.adapters.art:ARTAttack",
    "any evasion attack of the Adversarial Robustness Toolbox, art:CLASS",
)

_OURS = {"threat_model", "name", "foreign_name"}
"""Arguments of every attack that an entry does not give as parameters."""


def build_attack(spec: AttackSpec, threat_model: ThreatModel) -> Attack[Any] | BatchAttack:
    """The attack that an entry describes, under a threat model.

    Raises:
        UnknownNameError: no such attack or adapter.
        UsageError: a parameter that the attack does not have.
        AttackError: a parameter that makes no sense, or a norm that the attack cannot do.
    """
    adapter, colon, foreign = spec.attack.partition(":")
    factory = ADAPTERS[adapter] if colon else ATTACKS[spec.attack]
    arguments: dict[str, Any] = {"name": spec.name, **spec.params}
    if colon:
        arguments["foreign_name"] = foreign
    known = inspect.signature(factory).parameters
    names = [n for n, p in known.items() if n not in _OURS and p.kind is not p.VAR_KEYWORD]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in known.values())
    given = set(spec.params)
    for unknown in sorted(given & _OURS if takes_any else given - set(names)):
        close = near_misses(unknown, names)
        listed = f"It has: {', '.join(names)}" if names else None
        raise UsageError(
            f"attack {spec.attack!r} has no parameter {unknown!r}",
            where=spec.name,
            hint=f"Did you mean {close[0]!r}?" if close else listed,
        )
    try:
        built: Attack[Any] | BatchAttack = factory(threat_model, **arguments)
    except TypeError as error:
        raise AttackError(f"wrong parameters: {error}", where=spec.name) from error
    return built
