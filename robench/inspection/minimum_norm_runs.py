"""The minimum-norm records that curves are drawn from: found in the results folder, or made."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

from robench.attacks import build_attack
from robench.attacks.minimum_norm import MinimumNorm
from robench.errors import UsageError
from robench.evaluation.runner import Listener
from robench.preparation import prepare
from robench.records import AttackSpec, Suite
from robench.registry import unknown_name
from robench.request import Request
from robench.results import StoredRecord
from robench.threat_models import ThreatModel


def minimum_norm_runs(
    request: Request,
    attack: str | None,
    display: Callable[[int], AbstractContextManager[Listener]],
) -> list[StoredRecord]:
    """One record of a minimum-norm attack for each model that a request asks for.

    Args:
        request: its suite has the attack.
        attack: the entry's name; None: the suite's first minimum-norm one for the norm.
        display: number of attacks to be run → a context that gives their listener.

    Raises:
        RobenchError: as :func:`robench.preparation.prepare`.
        UsageError: the models are for several norms, or the suite has no minimum-norm attack for
            theirs, or ``attack`` is none.
        UnknownNameError: the suite has no such entry; near misses are listed.
    """
    prepared = prepare(request)
    threats = {planned.threat.norm: planned.threat for planned in prepared.planned}
    if len(threats) > 1:
        raise UsageError(
            f"the models are for several norms, {' and '.join(sorted(threats))}, and a curve is for "
            "one",
            hint="Choose one with --norm and --eps, or name fewer models",
        )
    (threat,) = threats.values()
    entry = _entry(prepared.suite, attack, threat)
    suite = prepared.suite.model_copy(update={"attacks": (entry,)})
    prepared = replace(prepared, suite=suite)
    with display(prepared.jobs) as listener:
        return prepared.run(listener)


def _entry(suite: Suite, attack: str | None, threat: ThreatModel) -> AttackSpec:
    """The one to run."""
    entries = suite.for_norm(threat.norm)
    if attack is not None:
        entries = tuple(spec for spec in entries if spec.name == attack)
        if not entries:
            names = [spec.name for spec in suite.for_norm(threat.norm)]
            raise unknown_name(f"attack (suite {suite.name}, {threat.norm})", attack, names)
    for spec in entries:
        if not spec.stages and isinstance(build_attack(spec, threat), MinimumNorm):
            return spec
    what = f"the suite {suite.name} has no minimum-norm attack for {threat.norm}"
    raise UsageError(
        what if attack is None else f"{attack} is no minimum-norm attack",
        hint="Take --suite minimum-norm, or an entry whose attack is fmn, ddn or cw-l2",
    )
