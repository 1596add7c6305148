"""Attacks by name, and how an entry of a suite becomes one.

An entry names an attack of this catalogue or of the entry points ``robench.attacks``, a class
``package.module:Class``, or another library's attack through an adapter: ``art:CLASS``. Listing
names imports no torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from robench.errors import AttackError, RobenchError, UsageError
from robench.records import AttackSpec
from robench.registry import (
    Registry,
    identity_of,
    installed_versions,
    is_module,
    is_target,
    near_misses,
)
from robench.threat_models import ThreatModel

if TYPE_CHECKING:
    from robench.attacks.base import Attack, BatchAttack
    from robench.attacks.trials import Trials

ATTACKS: Registry[Any] = Registry("attack", "robench.attacks")
ATTACKS.add("pgd", "robench.attacks.pgd:PGD", "fixed-step gradient ascent; FGSM and CW-Linf too")
ATTACKS.add("apgd", "robench.attacks.apgd:APGD", "Auto-PGD on CE, DLR or targeted DLR")
ATTACKS.add(
    "pma",
    "robench.attacks.probability_margin:PMA",
    "the probability margin attack: PGD whose gradients never vanish",
)
ATTACKS.add("fab", "robench.attacks.fab:FAB", "fast adaptive boundary, targeted or not")
ATTACKS.add("square", "robench.attacks.square:Square", "random search with forward passes only")
ATTACKS.add(
    "hop-skip-jump",
    "robench.attacks.hop_skip_jump:HopSkipJump",
    "a walk along the boundary that is told labels alone",
)
ATTACKS.add(
    "cw-l2",
    "robench.attacks.carlini_wagner:CarliniWagnerL2",
    "Carlini & Wagner's minimum-norm L2 attack",
)
ATTACKS.add("fmn", "robench.attacks.fmn:FMN", "fast minimum-norm attack under any norm")
ATTACKS.add("grid-pgd", "robench.attacks.grid_pgd:GridPGD", "PGD on the grey levels of its inputs")
ATTACKS.add(
    "corruptions",
    "robench.attacks.corruptions:Corruptions",
    "no search: common corruptions at five severities, each judged for every sample",
)
ATTACKS.add("ddn", "robench.attacks.ddn:DDN", "decoupled direction and norm, minimum-norm L2")

ADAPTERS: Registry[Any] = Registry("attack adapter")
ADAPTERS.add(
    "pyautoattack",
    "robench.attacks.adapters:PyAutoAttack",
    "the reference AutoAttack, pyautoattack:standard",
)
ADAPTERS.add(
    "art",
    "robench.attacks.adapters:ARTAttack",
    "any evasion attack of the Adversarial Robustness Toolbox, art:CLASS",
)

_DISTRIBUTIONS = {"art": "adversarial-robustness-toolbox", "pyautoattack": "pyautoattack"}
"""What each adapter runs."""

_OURS = {"threat_model", "name", "foreign_name"}
"""Arguments of every attack that an entry does not give as parameters."""


def build_attack(spec: AttackSpec, threat_model: ThreatModel) -> Attack[Any] | BatchAttack | Trials:
    """The attack that an entry describes, under a threat model.

    A class that an entry names as ``package.module:Class`` is imported: whether its author is
    trusted is asked where the suite's file is read
    (:func:`robench.attacks.suites.load_suite`).

    Raises:
        UnknownNameError: no such attack or adapter.
        UsageError: a parameter that the attack does not have, or a class that cannot be imported.
        AttackError: a parameter that makes no sense, a norm that the attack cannot do, targets that
            it cannot be aimed at, or something that is no attack.
    """
    factory, foreign = _factory(spec)
    arguments: dict[str, Any] = {"name": spec.name, **spec.params}
    if foreign is not None:
        arguments["foreign_name"] = foreign
    try:
        _check_parameters(spec, inspect.signature(factory).parameters)
        built: Attack[Any] | BatchAttack | Trials = factory(threat_model, **arguments)
    except RobenchError:
        raise
    except TypeError as error:
        raise AttackError(f"wrong parameters: {error}", where=spec.name) from error
    except Exception as error:  # Foreign code may raise anything.
        raise AttackError(
            f"{spec.attack} cannot be built: {type(error).__name__}: {error}", where=spec.name
        ) from error
    if not any(hasattr(built, name) for name in ("step", "propose", "trial")):
        raise AttackError(f"{spec.attack} builds no attack", where=spec.name)
    if spec.through is not None and not hasattr(built, "step"):
        raise AttackError(
            f"{spec.attack} makes its own passes, and cannot go through {spec.through!r}",
            where=spec.name,
            hint="Leave out `through`, or take an attack of robench's own",
        )
    # A class says it for itself: what a subclass changes may leave the label and no more.
    if threat_model.targets is not None and not vars(type(built)).get("can_target", False):
        raise AttackError(
            f"{spec.attack} cannot be aimed at targets",
            where=spec.name,
            hint="Choose a suite without it, or evaluate without --goal targeted",
        )
    return built


def foreign_code(spec: AttackSpec) -> dict[str, str]:
    """What else decides an entry's numbers: the code from outside robench that it runs.

    Returns:
        Attack → the version of the adapter's library, or :func:`robench.registry.identity_of` the
        class; nothing for robench's own attacks.

    Raises:
        UnknownNameError, UsageError: as for :func:`build_attack`.
    """
    found: dict[str, str] = {}
    for stage in spec.stages or (spec,):
        factory, foreign = _factory(stage)
        identity = identity_of(factory)
        if foreign is not None:
            library = _DISTRIBUTIONS[stage.attack.partition(":")[0]]
            identity = f"{library} {installed_versions(library).get(library, 'is not installed')}"
        if identity is not None:
            found[stage.attack] = identity
    return found


def imports_code(attack: str) -> bool:
    """Whether an entry's attack is a class to import, ``package.module:Class``."""
    head = attack.partition(":")[0]
    # An adapter's name has no dot; a module without one is a file on the path.
    return (
        is_target(attack)
        and attack not in ATTACKS
        and head not in ADAPTERS
        and ("." in head or is_module(head))
    )


def _factory(spec: AttackSpec) -> tuple[Any, str | None]:
    """What builds an entry's attack, and the adapter's name for it if there is one."""
    adapter, colon, foreign = spec.attack.partition(":")
    if colon and not imports_code(spec.attack) and spec.attack not in ATTACKS:
        return ADAPTERS[adapter], foreign
    factory = ATTACKS.find(spec.attack, trust_code=True)
    if not callable(factory):
        raise AttackError(f"{spec.attack} is not a class", where=spec.name)
    return factory, None


def _check_parameters(spec: AttackSpec, known: Mapping[str, inspect.Parameter]) -> None:
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
