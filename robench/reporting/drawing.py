"""Figures where they can be drawn: the numbers are more than they. Loads no matplotlib."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

from robench.errors import RobenchError, one_line

if TYPE_CHECKING:
    from robench.reporting.model_results import ModelResult

log = logging.getLogger("robench.reporting")

T = TypeVar("T")


def attempt(draw: Callable[[], T]) -> T | None:
    """What ``draw`` gives; None, with a warning, where matplotlib does not work here.

    matplotlib takes half a second to load, reads its user's configuration and raises almost
    anything; so ``draw`` imports it.

    Raises:
        RobenchError: as ``draw`` does.
    """
    try:
        return draw()
    except RobenchError:
        raise
    except Exception as error:
        log.warning("no figures: %s: %s", type(error).__name__, one_line(error))
        return None


def best_first(results: Iterable[ModelResult]) -> list[ModelResult]:
    """Results in the order of a leaderboard."""
    return sorted(results, key=lambda result: (-result.robust_acc.estimate, result.model.id))
