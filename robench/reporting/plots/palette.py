"""Every colour of every figure, in one place.

Series are Okabe and Ito's colours, which people with any colour vision tell apart; black stands in for
their yellow, which a thin line on white does not show. Markers say the same once more, for greyscale
and for more series than colours. Shares have one hue, light for none, so that a printed matrix is paper
where nothing is.
"""

from dataclasses import dataclass

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, VERMILION, BLACK, GREY = "#56B4E9", "#D55E00", "#000000", "#666666"

SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, BLACK, GREY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")

WHITE, LINE, REMARK = "#FFFFFF", "#DDDDDD", "#555555"
"""Paper, grid lines, and what is said in passing"""

NOTHING = "#EEEEEE"
"""Of a cell without a number: none is lighter"""

WRONG = "#B00000"
"""Of a prediction that is not the true class"""

SHARES = "Blues"
"""From none to all, of cells with their number in it"""

ATTENTION = "cividis"
"""From none to the most, of maps that lie over an image"""

OVERLAP = {"clean only": SKY, "both": "#F0E442", "adversarial only": "#A34700"}
"""Light, middle and dark, so that they differ in greyscale too"""


@dataclass(frozen=True)
class Look:
    """What one series looks like everywhere."""

    colour: str
    marker: str


def look(index: int) -> Look:
    """The look of the ``index``-th series. Colours repeat after 8, but not with their marker."""
    return Look(SERIES[index % len(SERIES)], MARKERS[index % len(MARKERS)])


BROKEN, SURVIVED = Look(VERMILION, "X"), Look(BLUE, "o")
"""Broken samples are filled, surviving ones hollow"""
