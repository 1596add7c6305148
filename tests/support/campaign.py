"""Long runs of generated examples that any machine repeats: one seed, one number of examples.

``FUZZ_SEED`` and ``FUZZ_EXAMPLES`` set others; pytest's first lines say both.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, seed, settings

Test = TypeVar("Test", bound=Callable[..., Any])

SEED = int(os.environ.get("FUZZ_SEED", "0"))
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "10000"))


def campaign(**strategies: Any) -> Callable[[Test], Any]:
    """A slow test of so many examples of these strategies.

    An example that fails is shrunk, printed, and printed once more as what repeats it alone
    (``@reproduce_failure``). It is kept as an ``@example`` or as a row of a quick test.
    """

    def decorate(test: Test) -> Any:
        made: Any = given(**strategies)(test)
        made = settings(
            max_examples=EXAMPLES,
            deadline=None,
            # What failed before on one machine would change the run there.
            database=None,
            print_blob=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )(made)
        return pytest.mark.slow(seed(SEED)(made))

    return decorate
