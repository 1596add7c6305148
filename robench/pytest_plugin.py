"""A pytest fixture for people who gate checkpoints in their tests.

In a test, on records that ``robench run`` has written::

    def test_release_candidate(robench_check):
        robench_check("candidate", against="release-3", margin=1.0)

The test fails if the candidate is worse, and, unless ``undecided="ok"``, also if n cannot tell.
The results folder is ``--robench-results`` (default ``results``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

if TYPE_CHECKING:
    from robench.regression_check import CheckResult


@dataclass(frozen=True)
class RobenchCheck:
    """What the fixture gives: call it to gate one checkpoint."""

    results: Path

    def __call__(
        self,
        candidate: str,
        *,
        against: str,
        margin: float | None = None,
        policy: str | Path | None = None,
        undecided: Literal["fail", "ok"] = "fail",
        dataset: str | None = None,
        norm: str | None = None,
        eps: str | None = None,
        n: int | None = None,
        seed: int | None = None,
    ) -> CheckResult:
        """Compare two models' stored records; see :func:`robench.regression_check.check`.

        Args:
            candidate, against: names, ids, or the start of the weights' sha256.
            margin: of robust accuracy in percentage points, in place of the policy's.
            policy: a policy file; None: the defaults.
            undecided: whether "cannot tell" fails the test.
            dataset, norm, eps, n, seed: which records, where there are several.
        """
        # Imported on use: the plugin is loaded in every pytest run of its environment.
        from robench.regression_check import Policy, check, check_markdown, stored_pair
        from robench.results import RecordFilter

        rules = Policy() if policy is None else Policy.load(policy)
        if margin is not None:
            rules = rules.with_margin(margin)
        wanted = RecordFilter(dataset=dataset, norm=norm, eps=eps, n=n, seed=seed)
        result = check(*stored_pair(candidate, against, self.results, wanted), rules)
        bad = (1,) if undecided == "ok" else (1, 2)
        if result.exit_code in bad:
            pytest.fail(check_markdown(result), pytrace=False)
        return result


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--robench-results``."""
    parser.getgroup("robench").addoption(
        "--robench-results", default="results", help="folder with robench's records"
    )


@pytest.fixture
def robench_check(request: pytest.FixtureRequest) -> RobenchCheck:
    """Gate a checkpoint: ``robench_check("candidate", against="baseline", margin=1.0)``."""
    return RobenchCheck(Path(request.config.getoption("--robench-results")))
