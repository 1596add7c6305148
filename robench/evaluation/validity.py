"""Reasons to doubt a number, found during and after the attacks, as data.

What is seen before them, from the model alone, is :mod:`robench.doctor`'s. Zero gradients, Square's
gain and missing target classes are AutoAttack's own flags (fra31/auto-attack, ``checks.py`` and
``flags_doc.md``), with its thresholds. What they can say is "no flag raised", never "passed".
"""

from __future__ import annotations

from robench.records import AttackSpec, Flag

__all__ = [
    "flag_few_classes",
    "flag_gradients",
    "flag_square",
]

_SQUARE_POINTS = 0.2


def flag_gradients(zero: int, nonfinite: int, searches: int) -> list[Flag]:
    """Gradients that cannot guide a search.

    Args:
        zero: searches whose first gradient was zero everywhere.
        nonfinite: gradients with NaN or infinity.
        searches: all searches.
    """
    flags = []
    if zero:
        flags.append(
            Flag(
                name="zero_gradients",
                severity="warning",
                evidence=f"{zero} of {searches} searches started with a zero gradient",
                count=zero,
            )
        )
    if nonfinite:
        flags.append(
            Flag(
                name="nonfinite_gradients",
                severity="severe",
                evidence=f"{nonfinite} gradients held NaN or infinity",
                count=nonfinite,
            )
        )
    return flags


def flag_square(broken: int, n: int) -> Flag | None:
    """Square, which sees no gradients, should add next to nothing after the gradient attacks."""
    points = 100 * broken / n if n else 0.0
    if points <= _SQUARE_POINTS:
        return None
    return Flag(
        name="square_lowers_accuracy",
        severity="warning",
        evidence=f"Square lowered the accuracy by {points:.1f} points after the gradient attacks: "
        "gradients may be masked",
        count=broken,
    )


def flag_few_classes(spec: AttackSpec, num_classes: int) -> Flag | None:
    """Stages that aim at more classes than there are wrong ones."""
    short = [
        f"{stage.name} ({wanted} wanted)"
        for stage in spec.stages or (spec,)
        if (wanted := int(stage.params.get("targets", 0))) > num_classes - 1
    ]
    if not short:
        return None
    return Flag(
        name="few_classes",
        severity="note",
        evidence=f"{num_classes - 1} target classes for {', '.join(short)}",
    )
