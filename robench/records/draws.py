"""How verdicts on a model with random outputs are made of repeated draws."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from robench.records.base import Frozen, Shown

DEFAULT_DRAWS = 32
"""Passes of one verdict where nobody says how many"""

RULE = (
    "a sample is wrong if more than half of its draws are; what an attack proposes is judged by draws "
    "that no search has seen, a find once more by others, which have the last word"
)
ERROR_RATES = tuple(
    f"{side}_error_rate{bound}" for side in ("clean", "adv") for bound in ("", "_low", "_high")
)
"""Columns: the share of a sample's draws that are wrong, or that give its target, with the limits of its
exact 95 % interval"""


class RepeatedDraws(Frozen):
    """Of a record whose model has random outputs: what its verdicts and gradients are made of."""

    verdict: Annotated[int, Field(ge=1)]
    """Draws of one verdict, K"""
    search: Annotated[int, Field(ge=1)]
    """Draws that logits, losses and gradients of a search are means of, where an attack asks for no more"""
    by_sample: bool
    """Whether they are functions of samples alone; else of the batch, too"""
    rule: Shown = RULE


def margin_of(own: Any, draws: int, towards: bool = False) -> Any:
    """The lead of a class that ``own`` of so many ``draws`` give, a number or an array of them.

    It is above 0 if at least half of them do, or ``towards`` it if more than half do; it is never 0.
    """
    return (2 * own - draws + (-0.5 if towards else 0.5)) / draws


def own_of(lead: float, draws: int, towards: bool = False) -> int:
    """How many draws gave the class: the inverse of :func:`margin_of`.

    >>> own_of(margin_of(5, 32), 32), own_of(margin_of(5, 32, True), 32, True)
    (5, 5)
    """
    return round((lead * draws + draws - (-0.5 if towards else 0.5)) / 2)
