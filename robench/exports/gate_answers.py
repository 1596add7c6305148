"""The gate's answer from stored records, as CI shows it."""

from __future__ import annotations

from robench import regression_check as gate
from robench.errors import UsageError
from robench.exports.material import Material


def junit(material: Material) -> str:
    """JUnit XML; raises as :func:`answer`."""
    return gate.check_junit(answer(material))


def sarif(material: Material) -> str:
    """SARIF 2.1.0; raises as :func:`answer`."""
    return gate.check_sarif(answer(material), material.store.folder / "leaderboard.csv")


def answer(material: Material) -> gate.CheckResult:
    """Whether the one model that is named is worse than ``against``, by stored records alone.

    Raises:
        UsageError: no baseline, or not one candidate, is named, or the two cannot be compared.
        UnknownNameError: there is no record of one of them.
    """
    baseline, policy = material.choices.against, material.choices.policy
    if baseline is None or len(material.models) != 1:
        raise UsageError(
            "this format holds the gate's answer for one candidate against a baseline, and "
            + ("no baseline is named" if baseline is None else f"{len(material.models)} are named"),
            hint="Write robench export CANDIDATE --against BASELINE; `robench check` also attacks what "
            "has no record",
        )
    pair = gate.stored_pair(material.models[0], baseline, material.store.folder, material.wanted)
    return gate.check(*pair, gate.Policy() if policy is None else gate.Policy.load(policy))
