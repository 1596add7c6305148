"""How many samples each attack breaks: a table of all models, a figure for each group."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from robench.records import Outcome
from robench.reporting.catalogue import Report
from robench.reporting.model_results import ModelResult


def broken_by(results: Sequence[ModelResult]) -> pd.DataFrame:
    """One row a model and attack: ``group``, ``model``, ``attack``, ``broken``."""
    rows = [
        (str(result.group), result.model.name, attack, int(broken.sum()))
        for result in results
        for attack in result.attacks
        for broken in [result.outcome_is(attack, Outcome.BROKEN)]
    ]
    return pd.DataFrame(rows, columns=["group", "model", "attack", "broken"])


def broken_by_attack(results: Sequence[ModelResult]) -> Figure:
    """The same, as bars."""
    figure = Figure(layout="constrained")
    table = broken_by(results)
    figure.add_subplot().barh(table["model"] + ", " + table["attack"], table["broken"])
    return figure


BROKEN_BY = Report("table", broken_by)
BROKEN_BY_ATTACK = Report("figure", broken_by_attack)
