"""What every attention and representation metric is called, means and ranges over.

Plain data without torch, so that leaderboards, plots and the command line speak of a metric as
the functions that compute it do. Names are those of the records' columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from robench.registry import unknown_name

__all__ = [
    "ATTENTION_METRICS",
    "METRICS",
    "REPRESENTATION_METRICS",
    "Direction",
    "Metric",
    "metric",
]

Direction = Literal["lower", "higher", "neutral"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One column.

    Attributes:
        name: the column's name in records and CSV.
        label: the name on an axis.
        direction: which way is better; ``neutral`` describes without judging.
        low: smallest possible value, None where unbounded.
        high: largest possible value, None where unbounded or dependent on the map's size.
        unit: what one unit is.
        meaning: one line for a reader who does not know the metric.
    """

    name: str
    label: str
    direction: Direction
    low: float | None
    high: float | None
    unit: str
    meaning: str


def _clean_adv_increase(base: Metric, increase: Direction) -> Iterator[Metric]:
    """The three columns of a metric of one map: clean, adversarial, and what the attack added."""
    yield replace(
        base, name=f"{base.name}_clean", label=f"{base.label} (clean)", meaning=base.meaning
    )
    yield replace(
        base,
        name=f"{base.name}_adv",
        label=f"{base.label} (adversarial)",
        meaning=f"{base.meaning}; adversarial map",
    )
    span = None if base.high is None or base.low is None else base.high - base.low
    yield replace(
        base,
        name=f"{base.name}_increase",
        label=f"{base.label} (increase)",
        direction=increase,
        low=None if span is None else -span,
        high=span,
        meaning=f"{base.meaning}; adversarial minus clean",
    )


ATTENTION_METRICS: tuple[Metric, ...] = (
    Metric(
        "attention_deviation",
        "Attention deviation",
        "lower",
        0.0,
        1.0,
        "1 - IoU",
        "how little the most attended eighth of the clean and adversarial maps overlap",
    ),
    Metric(
        "attention_shift",
        "Attention shift",
        "lower",
        0.0,
        1.0,
        "map diagonals",
        "how far the map's centre of mass moved",
    ),
    Metric(
        "attention_divergence",
        "Attention divergence",
        "lower",
        0.0,
        1.0,
        "bits",
        "Jensen-Shannon divergence of the clean and adversarial maps",
    ),
    *_clean_adv_increase(
        Metric(
            "attention_scatter",
            "Attention scatter",
            "neutral",
            0.0,
            None,
            "of a uniform map",
            "spread of the map around its centre of mass: 0 one cell, 1 uniform",
        ),
        "lower",
    ),
    *_clean_adv_increase(
        Metric(
            "attention_entropy",
            "Attention entropy",
            "neutral",
            0.0,
            1.0,
            "of a uniform map",
            "evenness of the map: 0 one cell, 1 uniform",
        ),
        "lower",
    ),
    *_clean_adv_increase(
        Metric(
            "attention_fragments",
            "Attention fragments",
            "neutral",
            1.0,
            None,
            "parts",
            "connected parts of the most attended eighth of the map",
        ),
        "lower",
    ),
    *_clean_adv_increase(
        Metric(
            "attention_coverage",
            "Attention coverage",
            "higher",
            0.0,
            1.0,
            "of the object",
            "share of the object among as many most attended cells",
        ),
        "higher",
    ),
    Metric(
        "attention_empty",
        "Empty attention maps",
        "lower",
        0.0,
        1.0,
        "samples",
        "the clean or adversarial map is all zero or not finite, its metrics undefined",
    ),
)
"""Columns of the attention metrics, in the order in which they are shown."""

REPRESENTATION_METRICS: tuple[Metric, ...] = (
    Metric(
        "alignment",
        "Alignment",
        "lower",
        0.0,
        2.0,
        "cosine distance",
        "distance between the features of a sample and of its adversarial example",
    ),
    Metric(
        "exclusion",
        "Exclusion",
        "higher",
        0.0,
        2.0,
        "cosine distance",
        "distance between the features of a sample and of other classes' adversarial examples",
    ),
    Metric(
        "separation",
        "Separation",
        "higher",
        0.0,
        1.0,
        "probability",
        "chance that a sample's own adversarial example is closer than one of another class",
    ),
)
"""Columns of the representation metrics, in the order in which they are shown."""

METRICS: dict[str, Metric] = {m.name: m for m in (*ATTENTION_METRICS, *REPRESENTATION_METRICS)}
"""All of them by name."""


def metric(name: str) -> Metric:
    """The metric called ``name``.

    Raises:
        UnknownNameError: there is none; near misses are listed.
    """
    if name not in METRICS:
        raise unknown_name("metric", name, list(METRICS))
    return METRICS[name]
