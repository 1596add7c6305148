"""Suites made of others: several as one, or with other parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from robench.errors import UsageError
from robench.records import AttackSpec, Suite, parse
from robench.registry import unknown_name


def combined(suites: Sequence[Suite]) -> Suite:
    """The entries of all suites, what several have once.

    Raises:
        UsageError: there is none, or two have an entry of one name that is not the same attack.
    """
    if not suites:
        raise UsageError("no suite is named", hint="Leave it out, or name one")
    if len(suites) == 1:
        return suites[0]
    entries: list[AttackSpec] = []
    for suite in suites:
        for spec in suite.attacks:
            rivals = [e for e in entries if e.name == spec.name and {*e.norms} & {*spec.norms}]
            if any(rival.identity != spec.identity for rival in rivals):
                raise UsageError(
                    f"{spec.name!r} of the suite {suite.name!r} is another attack than that of a suite "
                    "before it",
                    hint="Name suites whose entries agree",
                )
            held = {norm for rival in rivals for norm in rival.norms}
            if norms := tuple(norm for norm in spec.norms if norm not in held):
                entries.append(spec.model_copy(update={"norms": norms}))
    name = "+".join(dict.fromkeys(suite.name for suite in suites))[:100]
    return Suite(name=name, attacks=tuple(entries))


def with_settings(suite: Suite, settings: Mapping[str, Any]) -> Suite:
    """The suite with other parameters of some attacks.

    An attack that is changed is another one, so its name, which is its column's, says it:
    ``pgd-20`` with 40 steps is ``pgd-20+steps-40``.

    Args:
        suite: as it is.
        settings: ``ATTACK.PARAMETER`` to value, of a cascade's stage ``ATTACK.STAGE.PARAMETER``.

    Raises:
        UnknownNameError: the suite has no such attack; near misses are listed.
        UsageError: no attack or no parameter is named, or it is one of a whole cascade.
    """
    attacks = list(suite.attacks)
    marks: dict[str, str] = {}
    for key, value in settings.items():
        owner, _, parameter = key.rpartition(".")
        if not (owner and parameter):
            raise UsageError(
                f"{key!r} names no attack and parameter", hint="Write --set ATTACK.PARAMETER=VALUE"
            )
        known = [name for spec in suite.attacks for name in _settable(spec)]
        if owner not in known:
            raise unknown_name(f"attack of the suite {suite.name!r}", owner, known)
        attacks = [_changed(spec, owner, parameter, value) for spec in attacks]
        entry = next(s.name for s in suite.attacks if owner in _settable(s))
        stage = owner.removeprefix(entry).lstrip(".")
        mark = "-".join(filter(None, (stage, parameter, str(value))))
        marks[entry] = marks.get(entry, "") + "+" + re.sub("[^A-Za-z0-9._+-]+", "_", mark)
    renamed = [
        parse(AttackSpec, spec.model_dump() | {"name": spec.name + marks[spec.name]}, UsageError)
        if spec.name in marks
        else spec
        for spec in attacks
    ]
    return suite.model_copy(update={"attacks": tuple(renamed)})


def _settable(spec: AttackSpec) -> list[str]:
    """What parameters can be set of: the attack, or each stage of a cascade."""
    return [f"{spec.name}.{stage.name}" for stage in spec.stages] or [spec.name]


def _changed(spec: AttackSpec, owner: str, parameter: str, value: Any) -> AttackSpec:
    if owner not in _settable(spec):
        return spec
    if not spec.stages:
        return spec.model_copy(update={"params": {**spec.params, parameter: value}})
    stages = [
        stage.model_copy(update={"params": {**stage.params, parameter: value}})
        if owner == f"{spec.name}.{stage.name}"
        else stage
        for stage in spec.stages
    ]
    return spec.model_copy(update={"stages": tuple(stages)})
